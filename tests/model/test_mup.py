"""muP: what counts as hidden, what changes with the width, and that nothing does at the base width."""

from dataclasses import replace

import pytest
import torch
from models import TINY, random_tokens, rows_of

from hotplate.model.axes import parameter_axes
from hotplate.model.lm import LanguageModel
from hotplate.model.mup import hidden, rate_scale
from hotplate.train.config import OptimizerConfig
from hotplate.train.optimizer import Optimizer


@pytest.mark.parametrize("kind", TINY)
def test_hidden_parameters_are_the_maps_between_features_that_grow(kind: str) -> None:
    found = parameter_axes(LanguageModel.build(TINY[kind], 0))
    wide = {name.split(".", 2)[-1] for name, (_, axes) in found.items() if hidden(axes)}
    mixer = {"mixer.qkv.weight"} if kind in ("gpt", "decoder") else {"mixer.gates.weight"}
    mixer |= {"mixer.recurrent"} if kind == "lstm_dense" else set()
    assert wide == {*mixer, "mixer.out.weight", "mlp.up.weight", "mlp.down.weight"}


@pytest.mark.parametrize("kind", TINY)
def test_at_the_base_width_it_is_the_standard_parametrisation(kind: str) -> None:
    config = TINY[kind]
    plain, mup = LanguageModel.build(config, 0), LanguageModel.build(replace(config, mup_base=config.width), 0)
    for (name, a), b in zip(plain.named_parameters(), mup.parameters(), strict=True):
        assert torch.equal(a, b), name
    batch = rows_of(random_tokens())
    assert torch.equal(plain(batch).loss_sum, mup(batch).loss_sum)


def test_wider_models_start_smaller_inside_and_at_the_logits() -> None:
    config = replace(TINY["gpt"], mup_base=6)  # m = 4
    plain, mup = LanguageModel.build(replace(config, mup_base=None), 0), LanguageModel.build(config, 0)
    for name, (parameter, axes) in parameter_axes(mup).items():
        torch.testing.assert_close(parameter, plain.get_parameter(name) * (0.5 if hidden(axes) else 1.0))
    features = torch.randn(3, 24)
    torch.testing.assert_close(mup.logits(features), plain.logits(features) / 4)
    assert config.token_multiplier == 6**0.5 and replace(config, embedding_scale=2.0).token_multiplier == 2.0


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_fall_in_hidden_matrices_and_decay_does_not(kind) -> None:
    """An update from the same gradients, without and with muP's factors: m = 4."""
    config = replace(TINY["lstm"], mup_base=6)
    moved = {}
    for base in (None, 6):
        model = LanguageModel.build(replace(config, mup_base=base), 0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        optimizer = Optimizer(model, OptimizerConfig(kind=kind, clip=0.0, eps=1e-12, weight_decay=0.0))
        optimizer.step(0.01, torch.ones(()))
        moved[base] = {name: 1.0 - p.detach() for name, p in model.named_parameters()}
        decaying = Optimizer(model, OptimizerConfig(kind="adamw", weight_decay=0.1))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        decaying.step(0.5, torch.ones(()))
        for name, (parameter, axes) in parameter_axes(model).items():  # what decays per update has no factor
            torch.testing.assert_close(parameter, before[name] * (0.95 if axes.matrix else 1.0))
    for name, (_, axes) in parameter_axes(model).items():
        expected = rate_scale(axes, 4.0, kind == "muon" and axes.hidden_matrix)
        assert expected == ({"adamw": 0.25, "muon": 0.5}[kind] if hidden(axes) else 1.0)
        torch.testing.assert_close(moved[6][name], moved[None][name] * expected, rtol=1e-4, atol=2e-7)


def test_an_impossible_base_is_refused() -> None:
    with pytest.raises(ValueError, match="mup_base >= 1"):
        replace(TINY["gpt"], mup_base=0)
