"""The multi-head LSTM recurrence: contract, checks and the choice of implementation.

Letters: B rows, T steps, H heads, K head width.
"""

import importlib
from functools import cache

import torch
from torch import Tensor

from hotplate.kernels.bias import received, want_bias
from hotplate.kernels.checks import want, want_float, want_resets, want_state
from hotplate.kernels.launch import IMPLS, choose_impl, constant
from hotplate.kernels.lstm import reference
from hotplate.kernels.recurrence import autograd, eager, native

RESIDENT_K = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}  # wider matrices do not fit beside each other
WIDE_MAJORS = (9, 10)  # compute capabilities with shared memory for the widest; others have less


@cache
def _form(impl: str) -> autograd.Form:
    if impl == "triton":
        return importlib.import_module("hotplate.kernels.lstm.resident").FORM
    return native.form("lstm") if impl == "native" else eager.FORM


_run = autograd.differentiable("lstm", _form, biased=("triton",))


@constant
def _major(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def _widest(gates: Tensor) -> int:
    """The K that fits the shared memory of the device."""
    narrow = gates.is_cuda and _major(gates.device) not in WIDE_MAJORS
    return 64 if narrow else RESIDENT_K[gates.dtype]


def _choose(impl: str, gates: Tensor) -> str:
    """choose_impl, with the widths that the Triton form takes."""
    chosen, width = choose_impl("lstm", impl, gates), gates.shape[-1]
    if chosen != "triton":
        return chosen
    widest = _widest(gates)
    if width <= widest:
        return "triton"
    want(
        "lstm",
        impl == "auto",
        f"K <= {widest} with {gates.dtype} and impl='triton'",
        str(width),
        "use more heads, impl='eager', or lstm_dense for one wide head",
    )
    return "eager"


def lstm(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    forget_offset: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_g = gates_g + h_{t-1} R_g per head; c_t = f c_{t-1} + i z; h_t = o tanh(c_t).

    gates [B, T, 4, H, K] bf16|fp16|fp32|fp64: input projections with bias, blocks (i, f, z, o), any strides.
    recurrent [4, H, K (in), K (out)] floating, or [4, 1, K, K]: one matrix for all heads; rounded to the
    dtype of gates before use. h0, c0 [B, H, K] fp32 (fp64 with fp64 gates) or None = zeros; h0 is rounded
    likewise.
    forget_offset is added to f. resets bool [B, T] or None: h_{t-1} and c_{t-1} are zeroed before step t.
    Returns h [B, T, H, K] in the dtype of gates, h_last and c_last [B, H, K] in the state dtype. Gradients to
    gates, recurrent, h0 and c0. Products accumulate and states are kept in fp32 (fp64).
    bias: None, or like a row of gates, of any float dtype: what gates have already, for its gradient alone
    (kernels/bias.py); in triton that adds no pass over the gradient of gates.
    impl: auto, eager, native (C on a CPU; fp32, bf16), triton (K <= 64; bf16 and fp16 on compute capability 9
    and 10 K <= 128) or reference. auto is triton on CUDA where K fits it, native on a CPU where a C compiler is found,
    else eager; a name never falls back.
    Flops: 8 B T H K^2 forward, 16 B T H K^2 backward.
    ValueError on any other shape, dtype, device or impl. Source: Hochreiter & Schmidhuber 1997;
    block-diagonal R as in Beck et al. 2024, arXiv 2405.04517.
    """
    want("lstm", impl in IMPLS, f"impl in {sorted(IMPLS)}", repr(impl), "name one of these")
    want(
        "lstm",
        gates.ndim == 5 and gates.shape[2] == 4 and gates.shape[1] > 0,
        "gates [B, T >= 1, 4, H, K]",
        str(list(gates.shape)),
        "blocks are (i, f, z, o)",
    )
    B, T, _, H, K = gates.shape
    want_float("lstm", "gates", gates)
    want_float("lstm", "recurrent", recurrent)
    want(
        "lstm",
        tuple(recurrent.shape) in ((4, H, K, K), (4, 1, K, K)) and recurrent.device == gates.device,
        f"recurrent {[4, H, K, K]} or {[4, 1, K, K]} on {gates.device}",
        f"{list(recurrent.shape)} on {recurrent.device}",
        "index it [gate, head, in, out]",
    )
    want_state("lstm", "h0", h0, (B, H, K), gates)
    want_state("lstm", "c0", c0, (B, H, K), gates)
    want_resets("lstm", resets, (B, T), gates)
    want_bias("lstm", bias, gates, 3)
    impl = _choose(impl, gates)
    if impl == "reference":
        return reference.lstm(received(gates, bias), recurrent, h0, c0, resets, forget_offset)
    return _run(gates, recurrent, h0, c0, resets, forget_offset, impl, bias)
