"""What a device was measured to do: the denominators of every floor."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from hotplate.kernels.product import multiply

TRIES = 15  # the best of them: a neighbour on the machine must not lower the rate
CPU_SIDES, GPU_SIDES = (512, 1024, 2048), (4096, 8192)  # of square products: which is fastest depends on caches
CPU_SIZES = tuple(1 << exponent for exponent in range(20, 29))  # bytes that a pass touches: within caches and beyond
GPU_SIZES = (1 << 30,)  # what is timed there starts from a cold cache


@dataclass(frozen=True)
class Rates:
    """No provider beats them, whatever the mix of its reading and writing."""

    memory: tuple[tuple[int, float], ...]  # (bytes touched, bytes/s read plus written), smallest first
    matmul_flops_per_s: float

    def bytes_per_s(self, moved: int) -> float:
        """For work that moves so many bytes: of the largest measured size up to that, as less may stay in caches."""
        return next((rate for size, rate in reversed(self.memory) if size <= moved), self.memory[0][1])


def passes(touched: int, device: str) -> Iterator[tuple[int, Callable[[], object]]]:
    """(bytes moved, pass) over memory of `touched` bytes: one stream read, one written, one to another, one in place,
    and two into a third. What is fastest depends on the processor: a copy waits for its one stream, and what is written
    without having been read may be fetched all the same."""
    whole = torch.ones(touched // torch.float32.itemsize, device=device)
    halves, thirds = whole.split(-(-len(whole) // 2)), whole.split(-(-len(whole) // 3))
    yield touched, lambda: whole.sum()
    yield touched, lambda: whole.fill_(1.0)
    yield 2 * halves[1].nbytes, lambda: halves[0][: len(halves[1])].copy_(halves[1])
    yield 2 * touched, lambda: whole.mul_(1.0)
    third = len(thirds[2])
    yield 4 * thirds[2].nbytes, lambda: thirds[0][:third].addcmul_(thirds[1][:third], thirds[2], value=0.0)


@cache
def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    """Best of a few passes over memory and of square products by the fastest form there is, with the cases' threads."""
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

    memory, fastest = [], 0.0
    for touched in reversed(GPU_SIZES if large else CPU_SIZES):
        fastest = max(fastest, *(moved / best_seconds(call) for moved, call in passes(touched, device)))
        memory.append((touched, fastest))
    return Rates(tuple(reversed(memory)), max(map(product_rate, GPU_SIDES if large else CPU_SIDES)))
