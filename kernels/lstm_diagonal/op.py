"""The LSTM with diagonal recurrent weights: contract, checks and the choice of implementation.

Letters: B rows, T steps, D width.
"""

from torch import Tensor

from hotplate.kernels.bias import received, want_bias
from hotplate.kernels.checks import want, want_float, want_resets, want_state
from hotplate.kernels.launch import choose_impl
from hotplate.kernels.lstm_diagonal import forms, reference


def lstm_diagonal(
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
    """pre_g = gates_g + r_g h_{t-1}, element by element; c_t = f c_{t-1} + i z; h_t = o tanh(c_t).

    gates [B, T, 4, D] bf16|fp16|fp32|fp64: input projections with bias, blocks (i, f, z, o), any strides.
    recurrent [4, D] floating. h0, c0 [B, D] fp32 (fp64 with fp64 gates) or None = zeros. forget_offset is added to f.
    resets bool [B, T] or None: h_{t-1} and c_{t-1} are zeroed before step t (a document starts at t).
    Returns h [B, T, D] in the dtype of gates, h_last and c_last [B, D] in the state dtype. Gradients to gates,
    recurrent, h0 and c0. Gates, sums and the carried h and c are fp32 (fp64) whatever the dtype of gates.
    bias: None, or like a row of gates, of any float dtype: what gates have already, for its gradient alone
    (kernels/bias.py).
    impl: auto, eager, native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16) or reference. auto is triton on
    CUDA, native on a CPU where a C compiler is found, else eager; a name never falls back.
    Memory traffic at the least: 5 I/O-dtype values per (b, t, d) forward, 9 backward.
    ValueError on any other shape, dtype, device or impl. Source: Lei et al. 2018, arXiv 1709.02755 (vector weights);
    Danieli et al. 2025, arXiv 2510.21450 (LSTM with diagonal Jacobian blocks).
    """
    impl = choose_impl("lstm_diagonal", impl, gates)
    want(
        "lstm_diagonal",
        gates.ndim == 4 and gates.shape[2] == 4 and gates.shape[1] > 0,
        "gates [B, T >= 1, 4, D]",
        str(list(gates.shape)),
        "blocks are (i, f, z, o)",
    )
    want_float("lstm_diagonal", "gates", gates)
    want_float("lstm_diagonal", "recurrent", recurrent)
    B, T, _, D = gates.shape
    want(
        "lstm_diagonal",
        tuple(recurrent.shape) == (4, D) and recurrent.device == gates.device,
        f"recurrent {[4, D]} on {gates.device}",
        f"{list(recurrent.shape)} on {recurrent.device}",
        "one weight per gate block and column",
    )
    want_state("lstm_diagonal", "h0", h0, (B, D), gates)
    want_state("lstm_diagonal", "c0", c0, (B, D), gates)
    want_resets("lstm_diagonal", resets, (B, T), gates)
    want_bias("lstm_diagonal", bias, gates, 2)
    if impl == "reference":
        return reference.lstm_diagonal(received(gates, bias), recurrent, h0, c0, resets, forget_offset)
    return forms.lstm_diagonal(gates, recurrent, h0, c0, resets, forget_offset, impl, bias)
