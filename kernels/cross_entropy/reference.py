"""The definition of the output projection with its loss, with all logits at once.

Letters: N targets, D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is made of a row's logits and its target."""

    scale: float = 1.0
    """multiplies the logits"""
    cap: float = 0.0
    """logits become cap tanh(logits / cap), after the scale; 0: they do not"""
    smoothing: float = 0.0
    """share of the target's probability that is spread over the vocabulary"""
    z: float = 0.0
    """factor of lse^2, which holds the logits' normaliser near 1"""


def _logits(x: Tensor, weight: Tensor, loss: Loss) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = loss.scale * (x.to(wide) @ weight.to(wide).T)
    return loss.cap * torch.tanh(logits / loss.cap) if loss.cap else logits


def linear_losses(x: Tensor, weight: Tensor, targets: Tensor, scored: Tensor, loss: Loss) -> Tensor:
    """loss_n = lse_n - (1 - s) l_{n, target} - s mean_v l_nv + z lse_n^2, 0 where not scored. Float64 for the truth."""
    x = x.masked_fill(~scored[:, None], 0)  # 0 * nan is nan: an unscored row is not looked at
    logits = _logits(x, weight, loss)
    lse = torch.logsumexp(logits, dim=-1)
    of_target = logits.gather(1, targets[:, None])[:, 0]
    losses = lse - (1 - loss.smoothing) * of_target - loss.smoothing * logits.mean(-1) + loss.z * lse.square()
    return losses.masked_fill(~scored, 0)


def linear_scores(x: Tensor, weight: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """nll [N], and rank [N] = number of logits strictly greater than the target's."""
    logits = _logits(x, weight, loss)
    of_target = logits.gather(1, targets[:, None])
    nll = torch.logsumexp(logits, dim=-1) - of_target[:, 0]
    return nll.to(torch.promote_types(x.dtype, torch.float32)), (logits > of_target).sum(1)
