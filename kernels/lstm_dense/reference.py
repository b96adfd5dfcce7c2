"""The definition of the LSTM with one dense recurrent matrix per gate, one step at a time.

Letters: B rows, T steps, D width. Gate blocks: (i, f, z, o).
"""

import torch
from torch import Tensor


def lstm_dense(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """a_g = gates_g + h_{t-1} R_g, c_t = f c_{t-1} + i z, h_t = o tanh(c_t). Feed it float64 for the truth.

    h_t and R are rounded to the dtype of gates before they are multiplied, as a 16-bit matrix unit receives them.
    """
    wide = torch.promote_types(gates.dtype, torch.float32)
    B, T, _, D = gates.shape
    matrix = recurrent.to(gates.dtype).to(wide)
    h = gates.new_zeros(B, D) if h0 is None else h0.to(gates.dtype)
    c = gates.new_zeros(B, D, dtype=wide) if c0 is None else c0
    rows = []
    for t in range(T):
        if resets is not None:
            h, c = (state.masked_fill(resets[:, t, None], 0) for state in (h, c))
        i, f, z, o = (gates[:, t].to(wide) + torch.einsum("bk,gkj->bgj", h.to(wide), matrix)).unbind(1)
        c = torch.sigmoid(f + forget_offset) * c + torch.sigmoid(i) * torch.tanh(z)
        h = (torch.sigmoid(o) * torch.tanh(c)).to(gates.dtype)
        rows.append(h)
    return torch.stack(rows, 1), h.to(wide), c
