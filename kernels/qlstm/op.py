"""The quasi-LSTM recurrence: contract, checks and the choice of implementation.

Letters: B rows, T steps, D width.
"""

from torch import Tensor

from hotplate.kernels.bias import received, want_bias
from hotplate.kernels.checks import want, want_float, want_resets, want_state
from hotplate.kernels.launch import choose_impl
from hotplate.kernels.qlstm import reference, registered


def qlstm(
    gates: Tensor,
    c0: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    forget_offset: float = 0.0,
    coupled: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """c_t = f_t c_{t-1} + i_t z_t, h_t = o_t tanh(c_t); i, f (plus forget_offset), o sigmoid, z tanh.

    gates [B, T, 4, D] bf16|fp16|fp32|fp64, blocks (i, f, z, o), any strides; with coupled=True [B, T, 3, D],
    blocks (f, z, o), and i = 1 - f. c0 [B, D] fp32 (fp64 with fp64 gates) or None = zeros.
    resets bool [B, T] or None: the state is zeroed before step t (a document starts at t).
    bias: None, or like a row of gates, of any float dtype: what gates have already, for its gradient alone
    (kernels/bias.py); in triton that adds no pass over the gradient of gates.
    Returns h [B, T, D] in the dtype of gates and c_last [B, D] in the state dtype. Gradients to gates and c0.
    impl: auto, eager, native (C on a CPU; fp32, bf16), triton (fp32, bf16, fp16) or reference. auto is triton on
    CUDA, native on a CPU where a C compiler is found, else eager; a name never falls back.
    Gates and state are computed in fp32 (fp64) whatever the dtype of gates.
    Memory traffic at the least: 5 I/O-dtype values per (b, t, d) forward, 9 backward.
    ValueError on any other shape, dtype, device or impl. Source: Stanic et al. 2023, arXiv 2309.11197.
    """
    impl = choose_impl("qlstm", impl, gates)
    blocks = 3 if coupled else 4
    want(
        "qlstm",
        gates.ndim == 4 and gates.shape[2] == blocks and gates.shape[1] > 0,
        f"gates [B, T >= 1, {blocks}, D] with coupled={coupled}",
        str(list(gates.shape)),
        "blocks are (f, z, o) when coupled, else (i, f, z, o)",
    )
    want_float("qlstm", "gates", gates)
    B, T, _, D = gates.shape
    want_state("qlstm", "c0", c0, (B, D), gates)
    want_resets("qlstm", resets, (B, T), gates)
    want_bias("qlstm", bias, gates, 2)
    if impl != "triton":
        gates, bias = received(gates, bias), None
    if impl == "reference":
        return reference.qlstm(gates, c0, resets, forget_offset, coupled)
    return registered.qlstm(gates, bias, c0, resets, forget_offset, impl)
