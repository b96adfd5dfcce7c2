"""Sixty updates with each implementation of the recurrence: the same course as with its definition."""

from dataclasses import replace

import pytest
import torch

from hotplate.kernels import native
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.config import OptimizerConfig
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Step
from hotplate.train.throughput import random_batch

CPU = torch.device("cpu")
UPDATES = 60


def course(kind: str, impl: str) -> list[float]:
    """Loss per update of a small model on four batches in turn, state carried, documents reset."""
    preset = PRESETS[f"{kind.replace('_', '-')}-nano"]
    config = replace(preset, layers=2, width=48, ffn=64, vocab=96, mixer=replace(preset.mixer, heads=3, impl=impl))
    model = LanguageModel.build(config, 0)
    step = Step(model, Optimizer(model, OptimizerConfig(lr=3e-3)), Ranks(0, 1, CPU), "fp32", targets=4 * 24)
    resets = torch.zeros(4, 24, dtype=torch.bool)
    resets[torch.arange(4), torch.tensor([0, 5, 11, 23])] = True
    batches = [replace(random_batch(config, 4, 24, CPU, seed), resets=resets) for seed in range(4)]
    states, losses = [model.initial_state(4)], []
    for update in range(UPDATES):
        done, states = step([batches[update % 4]], states, 3e-3)
        losses.append(done.loss_sum.item() / (4 * 24))
    return losses


@pytest.mark.parametrize("kind", ["qlstm", "lstm", "lstm_dense", "lstm_diagonal"])
def test_losses_follow_the_definition(kind: str) -> None:
    impls = ["eager"] if native.why_not(kind) else ["eager", "native"]
    truth = course(kind, "reference")
    assert truth[-1] < truth[0] - 0.5
    for impl in impls:
        found = course(kind, impl)
        worst = max(abs(a - b) for a, b in zip(truth, found, strict=True))
        assert worst < 1e-3, f"{impl}: the loss strays by {worst:.2g} nats"
    assert "native" in impls or "compiler" in (native.why_not(kind) or "")
