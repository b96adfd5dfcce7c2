"""The cases of a norm's benchmark, for rmsnorm and layernorm alike. Letters: M rows, D features."""

from collections.abc import Callable

import torch
from torch import Tensor

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def norm_cases(
    bench: str,
    adding: bool,
    ours: Callable[..., Tensor | tuple[Tensor, Tensor]],
    plain: Op,
    vectors: int,
    peers: Callable[[bool], dict[str, Op]],
    device: str,
    quick: bool,
) -> list[Case]:
    """Forward, and forward with backward; fp32 on a CPU, bf16 on a GPU. `plain` is torch's, `vectors` its weights."""
    on_cpu = device == "cpu"
    M, D = (64, 32) if quick else (4096, 512) if on_cpu else (32768, 768)
    dtype, rows = torch.float32 if on_cpu else torch.bfloat16, 2 if adding else 1

    def form(impl: str) -> Op:
        return lambda *arguments: ours(*arguments, EPS, impl=impl)

    def prepare() -> Operands:
        arguments = [torch.randn(M, D, device=device).to(dtype) for _ in range(rows)]
        arguments += [(0.5 + torch.rand(D, device=device)).to(dtype) for _ in range(vectors)]
        arriving = [torch.randn(M, D, device=device).to(dtype) for _ in range(rows)]
        return Operands([x.requires_grad_() for x in arguments], arriving if adding else arriving[0])

    ops = {impl: form(impl) for impl in ("native" if on_cpu else "triton", "reference")} | {"torch": plain}
    ops |= {} if on_cpu else peers(adding)
    cases = []
    for way, wrap in (("forward", forward), ("forward+backward", both)):
        passes = {(False, forward): 2, (False, both): 5, (True, forward): 4, (True, both): 8}[adding, wrap]
        cases.append(
            Case(
                bench=bench,
                name=f"{'add ' if adding else ''}{way} M{M} D{D}",
                device=device,
                dtype=dtype,
                prepare=prepare,
                truth=in_float64(form("reference"), backward=wrap is both),
                providers={name: wrap(op) for name, op in ops.items()},
                tolerance=TOLERANCE[dtype],
                tokens=M,
                moved_bytes=passes * M * D * dtype.itemsize,
            )
        )
    return cases
