"""AdamW through torch's fused form. It writes the scaled gradients back; copies, and gradients of another dtype, are
passes of their own."""

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
    """See op.py."""
    if gradients[0].dtype != weights[0].dtype:
        gradients = [g.to(weights[0].dtype) for g in gradients]
    tensors = [list(x) for x in (weights, gradients, first, second, (), steps)]
    torch._foreach_add_(tensors[-1], 1.0)
    torch._fused_adamw_(
        *tensors,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=1.0 / scale,
        found_inf=skipped,
    )
    torch._foreach_sub_(tensors[-1], [skipped] * len(steps))  # as one scalar it would wait
    if copies is not None:
        torch._foreach_copy_(list(copies), list(weights))
