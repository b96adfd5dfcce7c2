"""LSTM with diagonal recurrent weights, forward and backward: ours and a step-by-step loop.

Letters: B rows, T steps, D width.
"""

import torch
from torch import Tensor

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.lstm_diagonal import lstm_diagonal

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def step_loop(gates: Tensor, recurrent: Tensor) -> Tensor:
    """h [B, T, D] as one would write the cell: every activation inside the loop, gradients by autograd."""
    h = c = gates.new_zeros(gates.shape[0], gates.shape[3], dtype=torch.float32)
    rows = []
    for pre in gates.unbind(1):
        i, f, z, o = (pre.float() + recurrent * h[:, None]).unbind(1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        rows.append(h.to(gates.dtype))
    return torch.stack(rows, 1)


def cases(device: str, quick: bool) -> list[Case]:
    """Forward, and forward with backward; fp32 on a CPU, bf16 on a GPU."""
    on_cpu = device == "cpu"
    shapes = [(2, 64, 64)] if quick else [(8, 512, 512)] if on_cpu else [(64, 512, 768), (32, 1024, 1024)]
    dtype = torch.float32 if on_cpu else torch.bfloat16
    return [_case(way, B, T, D, device, dtype) for B, T, D in shapes for way in ("forward", "forward+backward")]


def _case(way: str, B: int, T: int, D: int, device: str, dtype: torch.dtype) -> Case:
    wrap = forward if way == "forward" else both

    def prepare() -> Operands:
        gates = torch.randn(B, T, 4, D, device=device).to(dtype).requires_grad_()
        recurrent = (torch.randn(4, D, device=device) / 2).requires_grad_()  # above 1 rounding errors grow step by step
        return Operands([gates, recurrent], torch.randn(B, T, D, device=device).to(dtype))

    def ours(impl: str) -> Op:
        return lambda gates, recurrent: lstm_diagonal(gates, recurrent, impl=impl)[0]

    fast = "native" if device == "cpu" else "triton"
    ops = {impl: ours(impl) for impl in (fast, "eager", "reference")} | {"step loop": step_loop}
    values = 5 if way == "forward" else 14  # I/O values per element: 4 + 1, and 4 + 1 read, 4 written
    return Case(
        bench="lstm_diagonal",
        name=f"{way} B{B} T{T} D{D}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=B * T,
        moved_bytes=values * B * T * D * dtype.itemsize,
    )
