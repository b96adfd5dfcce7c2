"""The LSTM recurrence with dense matrices: contract, checks and the choice of implementation.

Letters: B rows, T steps, D width.
"""

import importlib
from functools import cache

from torch import Tensor

from hotplate.kernels.bias import received, want_bias
from hotplate.kernels.checks import want, want_float, want_resets, want_state
from hotplate.kernels.launch import IMPLS, choose_impl
from hotplate.kernels.lstm_dense import reference
from hotplate.kernels.recurrence import autograd, eager, native


@cache
def _form(impl: str) -> autograd.Form:
    if impl == "triton":
        return importlib.import_module("hotplate.kernels.lstm_dense.persistent").FORM
    return native.form("lstm_dense") if impl == "native" else eager.FORM


_run = autograd.differentiable("lstm_dense", _form)


def lstm_dense(
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
    """a_g = gates_g + h_{t-1} R_g; c_t = f c_{t-1} + i z; h_t = o tanh(c_t): torch.nn.LSTM behind its input projection.

    gates [B, T, 4, D] bf16|fp16|fp32|fp64: input projections with bias, blocks (i, f, z, o), any strides.
    recurrent [4, D (in), D (out)] floating, rounded to the dtype of gates before use; torch's weight_hh is its
    transpose (see import_torch_lstm). h0, c0 [B, D] fp32 (fp64 with fp64 gates) or None = zeros; h0 is rounded
    likewise. forget_offset is added to f. resets bool [B, T] or None: h_{t-1} and c_{t-1} are zeroed before step t.
    Returns h [B, T, D] in the dtype of gates, h_last and c_last [B, D] in the state dtype. Gradients to gates,
    recurrent, h0 and c0. Products accumulate and states are kept in fp32 (fp64).
    bias: None, or like a row of gates, of any float dtype: what gates have already, for its gradient alone
    (kernels/bias.py).
    impl: auto, eager, native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16) or reference. auto is triton on
    CUDA, native on a CPU where a C compiler is found, else eager; a name never falls back.
    Flops: 8 B T D^2 forward, 16 B T D^2 backward.
    ValueError on any other shape, dtype, device or impl. Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000.
    """
    want("lstm_dense", impl in IMPLS, f"impl in {sorted(IMPLS)}", repr(impl), "name one of these")
    want(
        "lstm_dense",
        gates.ndim == 4 and gates.shape[2] == 4 and gates.shape[1] > 0,
        "gates [B, T >= 1, 4, D]",
        str(list(gates.shape)),
        "blocks are (i, f, z, o)",
    )
    B, T, _, D = gates.shape
    want_float("lstm_dense", "gates", gates)
    want_float("lstm_dense", "recurrent", recurrent)
    want(
        "lstm_dense",
        tuple(recurrent.shape) == (4, D, D) and recurrent.device == gates.device,
        f"recurrent {[4, D, D]} on {gates.device}",
        f"{list(recurrent.shape)} on {recurrent.device}",
        "index it [gate, in, out]",
    )
    want_state("lstm_dense", "h0", h0, (B, D), gates)
    want_state("lstm_dense", "c0", c0, (B, D), gates)
    want_resets("lstm_dense", resets, (B, T), gates)
    want_bias("lstm_dense", bias, gates, 2)
    impl = choose_impl("lstm_dense", impl, gates)
    if impl == "reference":
        return reference.lstm_dense(received(gates, bias), recurrent, h0, c0, resets, forget_offset)
    one_head = (None if state is None else state[:, None] for state in (h0, c0))
    one_bias = None if bias is None else bias[:, None]
    h, h_last, c_last = _run(gates[:, :, :, None], recurrent[:, None], *one_head, resets, forget_offset, impl, one_bias)
    return h.squeeze(2), h_last.squeeze(1), c_last.squeeze(1)  # a view back, where [:, 0] would fill zeros
