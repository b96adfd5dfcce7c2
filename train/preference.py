"""Preference optimisation: which of two continuations of a prompt should be the likelier one.

S(y | x) is the sum of log-probabilities of the continuation's tokens, its end symbol included, in fp32. With the
reference model's S_ref and h = (S(y+) - S_ref(y+)) - (S(y-) - S_ref(y-)):

    sigmoid   -(1 - e) log sigmoid(b h) - e log sigmoid(-b h)         DPO (Rafailov et al. 2023), label smoothing e
    ipo       (h - 1 / (2 b))^2                                       IPO (Azar et al. 2023)
    simpo     -log sigmoid(b (S(y+) / |y+| - S(y-) / |y-|) - g)       SimPO (Meng et al. 2024), no reference

plus `nll` times the chosen continuation's mean negative log-likelihood. `per_token` divides each S by its length.
Letters: P pairs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.model.batch import Batch
from hotplate.model.lm import Output


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Training on pairs of continuations instead of documents; `run.start` is the policy and the reference."""

    pairs: str | None = None
    """.jsonl of prompt, chosen, rejected: text, or lists of token ids; none = ordinary training"""
    loss: Literal["sigmoid", "ipo", "simpo"] = "sigmoid"
    beta: float = 0.1
    """weight of the log-probabilities"""
    label_smoothing: float = 0.0
    """sigmoid: share of pairs whose order is taken to be wrong"""
    margin: float = 0.0
    """simpo: what the chosen one's scaled mean log-probability must exceed the other's by"""
    per_token: bool = False
    """divide log-probabilities by the number of tokens (simpo always does)"""
    nll: float = 0.0
    """weight of the chosen continuation's mean negative log-likelihood"""

    def __post_init__(self) -> None:
        if self.beta <= 0 or not 0 <= self.label_smoothing < 0.5 or self.nll < 0:
            raise ValueError(
                f"preference: want beta > 0, label_smoothing in 0..0.5 and nll >= 0, "
                f"got {self.beta}, {self.label_smoothing}, {self.nll}"
            )


class PreferenceLoss:
    """The sum over a batch's pairs, their number, and sums of what is reported per pair."""

    names: tuple[str, ...] = ("preferred", "reward_margin", "chosen_logp", "rejected_logp")

    def __init__(self, config: PreferenceConfig) -> None:
        self.config = config

    def __call__(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(loss [] with gradient, P fp32 [], sums fp32 [4] of `names`)."""
        assert output.scores is not None and batch.reference is not None and batch.sequences is not None
        config = self.config
        lengths = (batch.sequences < batch.weights.numel()).sum(1).to(output.scores.dtype)
        scores, reference = output.scores, batch.reference.to(output.scores.dtype)
        if config.loss == "simpo":
            reference = torch.zeros_like(reference)
        if config.per_token or config.loss == "simpo":
            scores, reference = scores / lengths, reference / lengths
        gains = (scores - reference).view(-1, 2)
        h = gains[:, 0] - gains[:, 1]
        if config.loss == "ipo":
            losses = (h - 0.5 / config.beta).square()
        elif config.loss == "simpo":
            losses = F.softplus(config.margin - config.beta * h)
        else:
            smooth = config.label_smoothing
            losses = (1 - smooth) * F.softplus(-config.beta * h) + smooth * F.softplus(config.beta * h)
        if config.nll:
            means = (output.scores / lengths).view(-1, 2)
            losses = losses - config.nll * means[:, 0]
        facts = torch.stack([(h > 0).to(h.dtype), config.beta * h, *output.scores.view(-1, 2).unbind(1)]).detach()
        pairs = torch.full((), float(len(h)), device=h.device)
        return losses.sum(), pairs, facts.sum(1).float()
