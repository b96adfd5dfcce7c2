"""The definition of the multi-head LSTM recurrence, one step at a time.

Letters: B rows, T steps, H heads, K head width. Gate blocks: (i, f, z, o).
"""

import torch
from torch import Tensor


def lstm(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_g = gates_g + h_{t-1} R_g, c_t = f c_{t-1} + i z, h_t = o tanh(c_t). Feed it float64 for the truth.

    h_t and R are rounded to the dtype of gates before they are multiplied: that is what a 16-bit matrix unit
    receives, and it is the whole difference between a 16-bit and a 32-bit run of the same numbers.
    """
    wide = torch.promote_types(gates.dtype, torch.float32)
    B, _, _, H, K = gates.shape
    matrix = recurrent.to(gates.dtype).to(wide).expand(4, H, K, K)
    c = gates.new_zeros(B, H, K, dtype=wide) if c0 is None else c0
    h = gates.new_zeros(B, H, K) if h0 is None else h0.to(gates.dtype)
    rows = []
    for t, pre_t in enumerate(gates.to(wide).unbind(1)):
        if resets is not None:
            keep = ~resets[:, t, None, None]
            h, c = h.where(keep, 0), c.where(keep, 0)
        i, f, z, o = (pre_t + torch.einsum("bhk,ghkj->bghj", h.to(wide), matrix)).unbind(1)
        c = torch.sigmoid(f + forget_offset) * c + torch.sigmoid(i) * torch.tanh(z)
        h_wide = torch.sigmoid(o) * torch.tanh(c)
        h = h_wide.to(gates.dtype)
        rows.append(h)
    return torch.stack(rows, 1), h.to(wide), c
