"""The definition of the quasi-LSTM recurrence, one step at a time.

Letters: B rows, T steps, D width. Gate blocks: (i, f, z, o), or (f, z, o) when coupled.
"""

import torch
from torch import Tensor


def qlstm(
    gates: Tensor, c0: Tensor | None, resets: Tensor | None, forget_offset: float, coupled: bool
) -> tuple[Tensor, Tensor]:
    """c_t = f c_{t-1} + i z, h_t = o tanh(c_t). Feed it float64 for the truth; gradients by autograd."""
    wide = torch.promote_types(gates.dtype, torch.float32)
    B, _, _, D = gates.shape
    *input_gate, f_pre, z_pre, o_pre = gates.to(wide).unbind(2)
    f, z, o = torch.sigmoid(f_pre + forget_offset), torch.tanh(z_pre), torch.sigmoid(o_pre)
    i = 1 - f if coupled else torch.sigmoid(input_gate[0])
    c = gates.new_zeros(B, D, dtype=wide) if c0 is None else c0
    h = []
    for t, (i_t, f_t, z_t, o_t) in enumerate(zip(*(gate.unbind(1) for gate in (i, f, z, o)), strict=True)):
        if resets is not None:
            c = c.masked_fill(resets[:, t, None], 0)
        c = f_t * c + i_t * z_t
        h.append(o_t * torch.tanh(c))
    return torch.stack(h, 1).to(gates.dtype), c
