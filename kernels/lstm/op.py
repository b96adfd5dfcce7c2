"""The multi-head LSTM recurrence: contract, checks and the choice of implementation.

Letters: B rows, T steps, H heads, K head width.
"""

from torch import Tensor

from hotplate.kernels.checks import choose, want, want_float, want_resets, want_state
from hotplate.kernels.lstm import eager, reference

IMPLS = {"eager": eager.lstm, "reference": reference.lstm}


def lstm(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    forget_offset: float = 0.0,
    impl: str = "eager",
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_g = gates_g + h_{t-1} R_g per head; c_t = f c_{t-1} + i z; h_t = o tanh(c_t).

    gates [B, T, 4, H, K] bf16|fp16|fp32|fp64: input projections with bias, blocks (i, f, z, o), any strides.
    recurrent [4, H, K (in), K (out)] floating, or [4, 1, K, K]: one matrix for all heads; rounded to the
    dtype of gates before use. h0, c0 [B, H, K] fp32 (fp64 with fp64 gates) or None = zeros; h0 is rounded
    likewise.
    forget_offset is added to f. resets bool [B, T] or None: h_{t-1} and c_{t-1} are zeroed before step t.
    Returns h [B, T, H, K] in the dtype of gates, h_last and c_last [B, H, K] in the state dtype. Gradients to
    gates, recurrent, h0 and c0. Products accumulate and states are kept in fp32 (fp64).
    Flops: 8 B T H K^2 forward, 16 B T H K^2 backward.
    ValueError on any other shape, dtype, device or impl. Source: Hochreiter & Schmidhuber 1997;
    block-diagonal R as in Beck et al. 2024, arXiv 2405.04517.
    """
    function = choose("lstm", impl, IMPLS)
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
    return function(gates, recurrent, h0, c0, resets, forget_offset)
