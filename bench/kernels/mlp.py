"""The activation of an MLP, and on a GPU with the product before it: ours, torch's, the compiler's, Liger's.

Letters: M rows, D width, F features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, imported, in_float64
from hotplate.kernels.mlp import activation

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


PLAIN = {"swiglu": swiglu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "relu2": lambda x: F.relu(x).square()}


def cases(device: str, quick: bool) -> list[Case]:
    """Every kind, forward, and forward with backward; on a GPU also behind its product."""
    on_cpu = device == "cpu"
    M, features = (64, 32) if quick else (4096, 1024) if on_cpu else (32768, 2048)
    ways = ("forward", "forward+backward")
    made = [_case(kind, way, M, features, None, device) for kind in PLAIN for way in ways]
    if not on_cpu:
        made += [_case(kind, way, M, 3072, 768, device) for kind in ("gelu", "relu2") for way in ways]
    return made


def _peers(kind: str) -> dict[str, Op]:
    found: dict[str, Op] = {"torch.compile": torch.compile(PLAIN[kind])}
    if kind == "swiglu" and (liger := imported("liger_kernel.transformers.functional")) is not None:
        found["liger"] = lambda x: liger.liger_swiglu(*x.chunk(2, dim=-1))
    return found


def _case(kind: str, way: str, M: int, features: int, D: int | None, device: str) -> Case:
    """D: the width before the product, or None for the activation alone."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    wrap, columns = forward if way == "forward" else both, features * (2 if kind == "swiglu" else 1)

    def form(op: Op) -> Op:
        return op if D is None else lambda x, weight: op(F.linear(x, weight))

    def ours(impl: str) -> Op:
        return form(lambda x: activation(x, kind, impl=impl))

    def prepare() -> Operands:
        arguments = [torch.randn(M, columns if D is None else D, device=device).to(dtype)]
        if D is not None:
            arguments.append((torch.randn(columns, D, device=device) / D**0.5).to(dtype))
        return Operands([x.requires_grad_() for x in arguments], torch.randn(M, features, device=device).to(dtype))

    ops = {impl: ours(impl) for impl in ("native" if device == "cpu" else "triton", "reference")}
    ops["torch"] = form(PLAIN[kind])
    if device == "cuda":
        ops |= (
            {name: form(op) for name, op in _peers(kind).items()}
            if D is None
            else {"torch.compile": torch.compile(form(PLAIN[kind]))}
        )
    passes = columns + features + (0 if way == "forward" else 2 * columns + features)  # values per row
    return Case(
        bench="mlp",
        name=f"{kind} {way} M{M} F{features}{'' if D is None else f' D{D}'}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ours("reference"), backward=wrap is both),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=M,
        moved_bytes=passes * M * dtype.itemsize if D is None else None,
        flops=None if D is None else 2 * M * D * columns * (1 if way == "forward" else 3),
    )
