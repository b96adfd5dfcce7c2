"""The definition of one AdamW update of many tensors, with scaled gradients, skipping and narrow copies."""

from collections.abc import Sequence

import torch
from torch import Tensor


def adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    scale: Tensor,
    skipped: Tensor,
) -> None:
    """In place, tensor by tensor. Float64 for the truth."""
    live = skipped == 0
    for index, (w, g, m, v, t) in enumerate(zip(weights, gradients, first, second, steps, strict=True)):
        g = g.to(w.dtype) * scale.to(w.dtype)
        count = t + 1
        m_new = betas[0] * m + (1 - betas[0]) * g
        v_new = betas[1] * v + (1 - betas[1]) * g.square()
        unbiased_m = m_new / (1 - betas[0] ** count.double()).to(m.dtype)
        unbiased_v = v_new / (1 - betas[1] ** count.double()).to(v.dtype)
        w_new = w * (1 - lr * weight_decay) - lr * unbiased_m / (unbiased_v.sqrt() + eps)
        for old, new in ((w, w_new), (m, m_new), (v, v_new), (t, count)):
            old.copy_(torch.where(live, new, old))
        if copies is not None:
            copies[index].copy_(torch.where(live, w.to(copies[index].dtype), copies[index]))
