"""The definition of the output projection with its loss, with all logits at once.

Letters: N targets, D width, V vocabulary.
"""

import torch
from torch import Tensor


def _logits(x: Tensor, weight: Tensor, logit_scale: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return logit_scale * (x.to(wide) @ weight.to(wide).T)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, logit_scale: float, chunk_bytes: int
) -> Tensor:
    """sum_n weights_n nll_n, nll = -log softmax(logit_scale x weight^T)[target]. Float64 for the truth."""
    if weights is not None:
        x = x.masked_fill((weights == 0)[:, None], 0)  # 0 * nan is nan: an unscored row is not looked at
    log_p = torch.log_softmax(_logits(x, weight, logit_scale), dim=-1)
    nll = -log_p.gather(1, targets[:, None])[:, 0]
    return (nll if weights is None else nll * weights.to(nll.dtype)).sum()


def linear_scores(
    x: Tensor, weight: Tensor, targets: Tensor, logit_scale: float, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    """nll [N], and rank [N] = number of logits strictly greater than the target's."""
    logits = _logits(x, weight, logit_scale)
    of_target = logits.gather(1, targets[:, None])
    nll = torch.logsumexp(logits, dim=-1) - of_target[:, 0]
    return nll.to(torch.promote_types(x.dtype, torch.float32)), (logits > of_target).sum(1)
