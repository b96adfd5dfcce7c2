"""What a device was measured to do: the denominators of every floor."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from hotplate.bench.apart import computed_anew
from hotplate.kernels.product import multiply, takes_halves

TRIES = 15  # the best of them: a neighbour on the machine must not lower the rate
CPU_SIDES, GPU_SIDES = (512, 1024, 2048), (4096, 8192)  # of square products: which is fastest depends on caches
CPU_BYTES, GPU_BYTES = 192 << 20, 3 << 30  # that a pass over memory touches: more than caches hold


@dataclass(frozen=True)
class Rates:
    """The fastest of each kind is what floors count with."""

    memory: Mapping[str, float]  # bytes/s, read plus written, by the kind of pass
    matmul_flops_per_s: float

    @property
    def bytes_per_s(self) -> float:
        return max(self.memory.values())


def passes(touched: int, device: str) -> dict[str, tuple[int, Callable[[], object]]]:
    """(bytes moved, pass) by kind, each over memory of `touched` bytes. Which is fastest depends on the processor: a
    copy waits for its one stream, and what is written without having been read may be fetched all the same."""
    whole = torch.ones(touched // torch.float32.itemsize, device=device)
    count = len(whole)
    a, b, c = (whole[n * (count // 3) :][: count // 3] for n in range(3))
    first, second = whole[: count // 2], whole[-(count // 2) :]
    return {
        "read": (whole.nbytes, whole.sum),
        "write": (whole.nbytes, lambda: whole.fill_(1.0)),
        "copy": (2 * first.nbytes, lambda: first.copy_(second)),
        "in place": (2 * whole.nbytes, lambda: whole.mul_(1.0)),
        "two into a third": (4 * a.nbytes, lambda: a.addcmul_(b, c, value=0.0)),
    }


@cache
def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """Best of a few passes over memory and of square products by the fastest form there is, with the cases' threads.

    On a CPU that does not multiply 16-bit numbers the fastest form is the product of fp32 copies.
    """
    if device == "cpu" and dtype.itemsize == 2 and not takes_halves(dtype):
        return measured_rates(device, torch.float32)
    if device != "cpu":
        return _measure(device, dtype, GPU_SIDES, GPU_BYTES)
    work = partial(_measure_with, torch.get_num_threads(), device, dtype, CPU_SIDES, CPU_BYTES)
    return computed_anew("rates of the processor", work)


def _measure_with(threads: int, *work: Any) -> Rates:
    torch.set_num_threads(threads)
    return _measure(*work)


def _measure(device: str, dtype: torch.dtype, sides: Sequence[int], touched: int) -> Rates:
    """Products of square matrices with each of `sides`, passes over memory of `touched` bytes."""
    large = device == "cuda"

    def best_seconds(call: Callable[[], object]) -> float:
        times = []
        for _ in range(TRIES):
            if large:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            if large:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return min(times)

    def product_rate(side: int) -> float:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        forms = (lambda: torch.mm(left, right, out=out), lambda: multiply(left, right, out))
        return 2 * side**3 / min(map(best_seconds, forms))

    kinds = passes(touched, device)
    memory = {kind: moved / best_seconds(call) for kind, (moved, call) in kinds.items()}
    return Rates(memory, max(map(product_rate, sides)))
