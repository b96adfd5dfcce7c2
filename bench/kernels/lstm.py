"""Multi-head LSTM recurrence: ours, the definition, and torch.nn.LSTM where there is one head.

Letters: B rows, T steps, H heads, K head width.
"""

import torch
from torch import Tensor

from hotplate.bench.harness import Case
from hotplate.bench.providers import Operands, both, forward, in_float64
from hotplate.kernels.lstm import lstm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def torch_lstm(gates: Tensor, recurrent: Tensor) -> Tensor:
    """torch.nn.LSTM on ready-made gates: its own input projection is the identity, and its time is included.

    It takes blocks (i, f, g, o), which are ours, and K-wide gates through an input of width 4 K.
    """
    B, T, _, _, K = gates.shape
    eye = torch.eye(4 * K, device=gates.device, dtype=gates.dtype)
    states = gates.new_zeros(2, 1, B, K).unbind(0)
    weights = [eye, recurrent[:, 0].mT.reshape(4 * K, K)]
    out, _, _ = torch.lstm(
        gates.reshape(B, T, 4 * K), states, weights, False, 1, 0.0, torch.is_grad_enabled(), False, True
    )
    return out[:, :, None]


def cases(device: str, quick: bool) -> list[Case]:
    """One dense matrix and several heads, forward and forward with backward."""
    on_cpu = device == "cpu"
    small, large = [(2, 16, 1, 32), (2, 16, 4, 16)], [(8, 128, 1, 512), (8, 128, 8, 64)]
    shapes = small if quick else large if on_cpu else [(16, 1024, 1, 768), (16, 1024, 12, 64)]
    dtype = torch.float32 if on_cpu else torch.bfloat16
    return [_case(way, shape, device, dtype) for shape in shapes for way in ("forward", "forward+backward")]


def _case(way: str, shape: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> Case:
    B, T, H, K = shape
    wrap = forward if way == "forward" else both

    def prepare() -> Operands:
        gates = torch.randn(B, T, 4, H, K, device=device).to(dtype).requires_grad_()
        recurrent = (torch.randn(4, H, K, K, device=device) / K**0.5).to(dtype).requires_grad_()
        return Operands([gates, recurrent], torch.randn(B, T, H, K, device=device).to(dtype))

    ops = {
        "eager": lambda gates, recurrent: lstm(gates, recurrent)[0],
        "reference": lambda gates, recurrent: lstm(gates, recurrent, impl="reference")[0],
    }
    if H == 1:
        ops["torch.nn.LSTM + identity input"] = torch_lstm
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
