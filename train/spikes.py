"""Losses that leave their own recent distribution, judged on the device: nothing is read back, all ranks agree."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Policy = Literal["warn", "skip"]


@dataclass(frozen=True)
class Verdict:
    """On one update, as tensors [] on the device."""

    spike: Tensor  # bool
    veto: Tensor  # bool: the update must not be applied


class LossWatch:
    """Exponential mean and variance of the loss over about `window` updates; a spike is a loss more than `sigmas`
    standard deviations above the mean. The statistics are part of a checkpoint.

    A spike moves the mean only as far as a loss just below the threshold would: one outlier is not learned, a lasting
    change of level is. A loss that is not finite moves nothing and is always vetoed.
    """

    def __init__(self, policy: Policy, sigmas: float, window: int, device: torch.device) -> None:
        if sigmas <= 0 or window < 2:
            raise ValueError(f"LossWatch: want sigmas > 0 and window >= 2, got {sigmas} and {window}")
        self.policy, self.sigmas, self.window = policy, sigmas, window
        self.statistics = torch.zeros(3, dtype=torch.float64, device=device)  # updates seen, mean, variance

    def judge(self, loss: Tensor) -> Verdict:
        """The verdict on the update whose mean loss over all ranks is `loss` (float []); the statistics go on."""
        seen, mean, variance = self.statistics.unbind()
        limit = torch.where(seen >= self.window, self.sigmas * variance.sqrt(), torch.inf)
        finite = loss.isfinite()
        above = torch.where(finite, loss.double() - mean, 0.0)
        spike = above > limit
        weight = (1.0 / (seen + 1.0)).clamp(min=1.0 / self.window)
        move = torch.minimum(above, limit)
        updated = torch.stack([seen + 1.0, mean + weight * move, (1.0 - weight) * (variance + weight * move.square())])
        self.statistics = torch.where(finite, updated, self.statistics)
        return Verdict(spike, ~finite | spike if self.policy == "skip" else ~finite)

    def load(self, statistics: Tensor) -> None:
        """Go on from a checkpoint's statistics, fp64 [3]."""
        self.statistics = statistics.to(self.statistics)
