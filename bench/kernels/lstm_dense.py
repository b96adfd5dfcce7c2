"""Dense LSTM behind its input projection: ours, the definition, and torch.nn.LSTM on the same x.

torch.nn.LSTM multiplies by its input matrix itself, so ours is timed with a Linear in front: equal work.
Letters: B rows, T steps, D width.
"""

import torch
from torch import Tensor

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.linear import linear
from hotplate.kernels.lstm_dense import lstm_dense

TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def ours(impl: str) -> Op:
    """(x [B, T, D], weight [4 D, D], recurrent [4, D, D]) -> h."""

    def op(x: Tensor, weight: Tensor, recurrent: Tensor) -> Tensor:
        gates = linear(x, weight).unflatten(-1, (4, x.shape[-1]))
        return lstm_dense(gates, recurrent, impl=impl)[0]

    return op


def torch_lstm(x: Tensor, weight: Tensor, recurrent: Tensor) -> Tensor:
    """torch.nn.LSTM without its module: the same operator; transposing our R into its weight_hh is within its time."""
    states = x.new_zeros(2, 1, len(x), x.shape[-1]).unbind(0)
    weights = [weight, recurrent.mT.flatten(0, 1)]
    return torch.lstm(x, states, weights, False, 1, 0.0, torch.is_grad_enabled(), False, True)[0]


def cases(device: str, quick: bool) -> list[Case]:
    """Widths around those of the presets; on a GPU in bf16 and, where torch.nn.LSTM is fastest, fp16."""
    on_cpu = device == "cpu"
    if quick:
        shapes = [(2, 16, 32)]
    else:
        shapes = [(8, 128, 256), (8, 128, 512)] if on_cpu else [(16, 1024, 768), (64, 1024, 1024), (16, 512, 2048)]
    dtypes = [torch.float32] if on_cpu else [torch.bfloat16, torch.float16]
    ways = ("forward", "forward+backward")
    return [_case(way, shape, device, dtype) for shape in shapes for dtype in dtypes for way in ways]


def _case(way: str, shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> Case:
    B, T, D = shape
    wrap = forward if way == "forward" else both
    fast = "native" if device == "cpu" else "triton"

    def prepare() -> Operands:
        x = torch.randn(B, T, D, device=device).to(dtype).requires_grad_()
        weight = (torch.randn(4 * D, D, device=device) / D**0.5).to(dtype).requires_grad_()
        recurrent = (torch.randn(4, D, D, device=device) / D**0.5).to(dtype).requires_grad_()
        return Operands([x, weight, recurrent], torch.randn(B, T, D, device=device).to(dtype))

    ops = {name: ours(name) for name in (fast, "eager", "reference")} | {"torch.nn.LSTM": torch_lstm}
    products = 1 if way == "forward" else 3
    values = 6 if way == "forward" else 18
    return Case(
        bench="lstm_dense",
        name=f"{way} with input projection B{B} T{T} D{D} {str(dtype).removeprefix('torch.')}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=B * T,
        moved_bytes=values * B * T * D * dtype.itemsize,
        flops=products * 16 * B * T * D * D,
    )
