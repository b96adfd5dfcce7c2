"""The definition of the LSTM with diagonal recurrent weights, one step at a time.

Letters: B rows, T steps, D width. Gate blocks: (i, f, z, o).
"""

import torch
from torch import Tensor


def lstm_diagonal(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_g = gates_g + r_g h_{t-1}, c_t = f c_{t-1} + i z, h_t = o tanh(c_t). Feed it float64 for the truth.

    No matrix unit sees h, so the state that is carried is never rounded: only the h that is returned is.
    """
    wide = torch.promote_types(gates.dtype, torch.float32)
    B, _, _, D = gates.shape
    weights = recurrent.to(wide)
    h, c = (gates.new_zeros(B, D, dtype=wide) if state is None else state for state in (h0, c0))
    rows = []
    for t, pre_t in enumerate(gates.to(wide).unbind(1)):
        if resets is not None:
            h, c = (state.masked_fill(resets[:, t, None], 0) for state in (h, c))
        i, f, z, o = (pre_t + weights * h[:, None]).unbind(1)
        c = torch.sigmoid(f + forget_offset) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        rows.append(h)
    return torch.stack(rows, 1).to(gates.dtype), h, c
