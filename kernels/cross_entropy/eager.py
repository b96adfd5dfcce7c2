"""Loss and gradient of a chunk's logits with torch's operations, the gradient in the logits' place."""

import torch
from torch import Tensor

from hotplate.kernels.cross_entropy.reference import Loss


def rows(
    logits: Tensor,
    targets: Tensor,
    factors: Tensor | None,
    losses: Tensor,
    lse: Tensor,
    known: bool,
    loss: Loss,
    dtype: torch.dtype,
) -> Tensor:
    """Fills losses and lse [C], unless lse is known; where there are factors [C], logits [C, V] become the gradient.

    dtype, the products' operand, is for forms that write another buffer.
    """
    target, V, slope = targets[:, None], logits.shape[1], None
    if loss.scale != 1:
        logits *= loss.scale
    if loss.cap:
        logits.div_(loss.cap).tanh_()
        slope = None if factors is None else 1 - logits.square()
        logits.mul_(loss.cap)
    if known:
        share = 1 + 2 * loss.z * lse
        logits.sub_(lse[:, None]).exp_()
    else:
        of_target = logits.gather(1, target)
        mean = logits.mean(1, keepdim=True) if loss.smoothing else of_target
        top = logits.amax(1, keepdim=True)
        total = logits.sub_(top).exp_().sum(1, keepdim=True)
        normaliser = top + total.log()
        lse.copy_(normaliser[:, 0])
        of_row = top - of_target + total.log() + loss.smoothing * (of_target - mean) + loss.z * normaliser.square()
        losses.copy_(of_row[:, 0])
        share = ((1 + 2 * loss.z * normaliser) / total)[:, 0]
    if factors is None:
        return logits
    factors = factors * loss.scale
    logits.mul_((factors * share)[:, None])
    if loss.smoothing:
        logits.sub_((factors * (loss.smoothing / V))[:, None])
    logits.scatter_add_(1, target, -(factors * (1 - loss.smoothing))[:, None])
    return logits if slope is None else logits.mul_(slope)
