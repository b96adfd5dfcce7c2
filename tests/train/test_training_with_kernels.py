"""Some sixty updates with each implementation of the kernels: the same course as with their definitions."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from hotplate.kernels import native
from hotplate.kernels.cross_entropy import linear_cross_entropy
from hotplate.model import lm
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.config import OptimizerConfig
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Step
from hotplate.train.throughput import random_batch

CPU = torch.device("cpu")
UPDATES = 60


def recurrent(kind: str, impl: str) -> ModelConfig:
    preset = PRESETS[f"{kind.replace('_', '-')}-nano"]
    return replace(preset, layers=2, width=48, ffn=64, vocab=96, mixer=replace(preset.mixer, heads=3, impl=impl))


def transformer(preset: str, impl: str) -> ModelConfig:
    """GPT: LayerNorm, GELU. Decoder: RMSNorm, SwiGLU, rotary positions, norms of queries and keys."""
    config = PRESETS[f"{preset}-nano"]
    heads = {"heads": 4, "head_width": 12, "qk_norm": preset == "decoder"}
    mixer = replace(config.mixer, **heads, kv_heads=2 if preset == "decoder" else None)
    return replace(config, layers=2, width=48, ffn=80, vocab=96, mixer=mixer, impl=impl)


def course(config: ModelConfig, updates: int, adamw: str = "auto") -> list[float]:
    """Loss per update of a small model on four batches in turn, state carried, documents reset."""
    model = LanguageModel.build(config, 0)
    step = Step(model, Optimizer(model, OptimizerConfig(lr=3e-3, impl=adamw)), Ranks(0, 1, CPU), "fp32", targets=4 * 12)
    resets = torch.zeros(4, 12, dtype=torch.bool)
    resets[torch.arange(4), torch.tensor([0, 3, 6, 11])] = True
    batches = [replace(random_batch(config, 4, 12, CPU, seed), resets=resets) for seed in range(4)]
    states, losses = [model.initial_state(4)], []
    for update in range(updates):
        done, states = step([batches[update % 4]], states, 3e-3)
        losses.append(done.loss_sum.item() / (4 * 12))
    return losses


def strays(truth: list[float], found: list[float]) -> float:
    assert truth[-1] < truth[0] - 0.5
    return max(abs(a - b) for a, b in zip(truth, found, strict=True))


@pytest.mark.parametrize("preset", ["gpt", "decoder"])
def test_a_transformer_follows_its_definition(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Norms, MLP, rotary positions, loss and AdamW at once."""
    found = course(transformer(preset, "auto"), 50)
    monkeypatch.setattr(lm, "linear_cross_entropy", partial(linear_cross_entropy, impl="reference"))
    truth = course(transformer(preset, "reference"), 50, adamw="reference")
    assert strays(truth, found) < 1e-3


@pytest.mark.parametrize("kind", ["qlstm", "lstm", "lstm_dense", "lstm_diagonal"])
def test_losses_follow_the_definition(kind: str) -> None:
    impls = ["eager"] if native.why_not(kind) else ["eager", "native"]
    truth = course(recurrent(kind, "reference"), UPDATES)
    for impl in impls:
        worst = strays(truth, course(recurrent(kind, impl), UPDATES))
        assert worst < 1e-3, f"{impl}: the loss strays by {worst:.2g} nats"
    assert "native" in impls or "compiler" in (native.why_not(kind) or "")
