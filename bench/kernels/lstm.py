"""Multi-head LSTM recurrence: ours, the definition, a loop over steps as autograd runs it, and FlashRNN.

torch.nn.LSTM has one head and an input projection: bench/kernels/lstm_dense.py compares on equal work.
Letters: B rows, T steps, H heads, K head width.
"""

import importlib.util

import torch
from torch import Tensor

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.lstm import lstm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def loop(gates: Tensor, recurrent: Tensor) -> Tensor:
    """One batched product and a handful of operations per step; autograd keeps the graph of all of them."""
    B, _, _, H, K = gates.shape
    h, c = gates.new_zeros(2, B, H, K).unbind(0)
    steps = []
    for x in gates.unbind(1):
        i, f, z, o = (x + torch.einsum("bhk,ghkj->bghj", h, recurrent)).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append(h)
    return torch.stack(steps, 1)


def flashrnn(gates: Tensor, recurrent: Tensor) -> Tensor:
    """FlashRNN's fused Triton form: gates (i, f, z, o), a matrix per head, zero bias and start."""
    from flashrnn import flashrnn as run

    B, _, _, H, K = gates.shape
    bias = gates.new_zeros(4, H, K)
    matrix = recurrent.permute(0, 1, 3, 2).contiguous()
    states, _ = run(gates, matrix, bias, function="lstm", backend="triton_fused", dtype=str(gates.dtype)[6:])
    return states[0]


def cases(device: str, quick: bool) -> list[Case]:
    """Few wide heads and many narrow ones, forward and forward with backward."""
    on_cpu = device == "cpu"
    small, large = [(2, 16, 2, 32), (2, 16, 4, 16)], [(8, 128, 4, 128), (8, 128, 8, 64)]
    shapes = (
        small
        if quick
        else large
        if on_cpu
        else [(16, 1024, 6, 128), (16, 1024, 12, 64), (16, 1024, 24, 32), (176, 1024, 12, 64)]
    )
    dtype = torch.float32 if on_cpu else torch.bfloat16
    return [_case(way, shape, device, dtype) for shape in shapes for way in ("forward", "forward+backward")]


def _case(way: str, shape: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> Case:
    B, T, H, K = shape
    wrap = forward if way == "forward" else both

    def prepare() -> Operands:
        gates = torch.randn(B, T, 4, H, K, device=device).to(dtype).requires_grad_()
        recurrent = (torch.randn(4, H, K, K, device=device) / K**0.5).to(dtype).requires_grad_()
        return Operands([gates, recurrent], torch.randn(B, T, H, K, device=device).to(dtype))

    fast = "native" if device == "cpu" else "triton"
    ops: dict[str, Op] = {
        name: lambda gates, recurrent, name=name: lstm(gates, recurrent, impl=name)[0]
        for name in (fast, "eager", "reference")
    }
    ops["loop of torch operations"] = loop
    if device == "cuda" and importlib.util.find_spec("flashrnn"):
        ops["FlashRNN, Triton"] = flashrnn
    products = 1 if way == "forward" else 3
    values = 5 if way == "forward" else 14
    return Case(
        bench="lstm",
        name=f"{way} B{B} T{T} H{H} K{K}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=B * T,
        moved_bytes=values * B * T * H * K * dtype.itemsize,
        flops=products * 8 * B * T * H * K * K,
    )
