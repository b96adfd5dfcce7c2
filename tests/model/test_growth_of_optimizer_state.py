"""A noise-free clone with its grown AdamW state goes on exactly as the small model does."""

import math
from dataclasses import replace

import pytest
import torch
from models import SHARED, TINY, build, random_tokens, rows_of

from hotplate.model.growth.factors import Factors
from hotplate.model.growth.grow import grow
from hotplate.model.growth.optimizer_state import Scale, grow_state, scales
from hotplate.model.growth.strategies import Strategy
from hotplate.model.lm import LanguageModel

LR, DECAY, EPS, CLIP, BETAS = 3e-3, 0.1, 1e-8, 0.5, (0.9, 0.95)
EXACT = Strategy(snr_db=None)
ROTARY = replace(TINY["decoder"], bias="none")


class AdamW:
    """torch's AdamW over named parameters, each with its own multipliers."""

    def __init__(self, model: LanguageModel, scale: dict[str, Scale]) -> None:
        self.named = dict(model.named_parameters())
        self.scale = {name: scale.get(name, Scale()) for name in self.named}
        groups = [
            {"params": [p], "lr": LR * s.lr, "weight_decay": DECAY * s.weight_decay, "eps": EPS * s.eps}
            for p, s in ((p, self.scale[name]) for name, p in self.named.items())
        ]
        self.adamw = torch.optim.AdamW(groups, betas=BETAS)

    def step(self) -> float:
        squares = (self.scale[name].squared_norm * p.grad.square().sum() for name, p in self.named.items())
        norm = math.sqrt(sum(s.item() for s in squares))
        for p in self.named.values():
            p.grad.mul_(min(1.0, CLIP / norm))
        self.adamw.step()
        self.adamw.zero_grad()
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        return {f"{kind}.{name}": x for name, p in self.named.items() for kind, x in self.adamw.state[p].items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        for name, p in self.named.items():
            self.adamw.state[p] = {kind: state[f"{kind}.{name}"] for kind in ("step", "exp_avg", "exp_avg_sq")}


def course(model: LanguageModel, optimizer: AdamW, updates: int, start: int) -> list[float]:
    losses = []
    for update in range(start, start + updates):
        output = model(
            rows_of(random_tokens(2, 9, seed=update % 3))
        )  # three batches in turn: there is something to learn
        (output.loss_sum / output.weight_sum).backward()
        losses.append((output.loss_sum / output.weight_sum).item())
        losses.append(optimizer.step())
    return losses


CASES = {
    "gpt": (TINY["gpt"], Factors(width=2, ffn=2, heads=2)),
    "gpt-heads": (TINY["gpt"], Factors(width=3, ffn=4, heads=3)),
    "decoder": (ROTARY, Factors(width=2, ffn=3, heads=2)),
    "qlstm": (TINY["qlstm"], Factors(width=2, ffn=2, heads=2, head_width=2)),
    "lstm": (TINY["lstm"], Factors(width=2, ffn=2, heads=2, head_width=2)),
    "lstm-shared": (SHARED, Factors(width=2, heads=3)),
    "lstm_dense": (TINY["lstm_dense"], Factors(width=4, ffn=1, heads=2)),
    "lstm_diagonal": (TINY["lstm_diagonal"], Factors(width=1, ffn=2, heads=3)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_clone_follows_the_small_model(name: str) -> None:
    config, factors = CASES[name]
    small = build(config)
    optimizer = AdamW(small, {})
    course(small, optimizer, 4, start=0)
    grown, weights = grow(dict(small.named_parameters()), config, factors, EXACT)
    clone = LanguageModel.build(grown, 0, dtype=torch.float64)
    clone.load_state_dict(weights)
    follower = AdamW(clone, scales(config, factors))
    follower.load(grow_state(optimizer.state(), config, factors, EXACT, "identity"))
    expected, found = (course(m, o, 20, start=100) for m, o in ((small, optimizer), (clone, follower)))
    assert expected[0] - expected[-2] > 1e-3  # it does learn: the comparison is not of two constants
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    assert worst <= 1e-9, f"losses and norms stray by {worst:.2g}"
    again, _ = grow(dict(small.named_parameters()), config, factors, EXACT)
    assert again == grown


def test_each_part_of_the_rule_matters() -> None:
    config, factors = CASES["lstm"]
    small = build(config)
    optimizer = AdamW(small, {})
    course(small, optimizer, 4, start=0)
    grown, weights = grow(dict(small.named_parameters()), config, factors, EXACT)
    state = grow_state(optimizer.state(), config, factors, EXACT, "identity")
    expected = course(small, optimizer, 20, start=100)
    doubled = {key: 2 * x if key.startswith("exp_avg_sq.") else x for key, x in state.items()}
    breaks = {"rates": ({}, state), "moments": (scales(config, factors), doubled)}
    for name, (scale, begin) in breaks.items():
        clone = LanguageModel.build(grown, 0, dtype=torch.float64)
        clone.load_state_dict({key: x.clone() for key, x in weights.items()})
        follower = AdamW(clone, scale)
        follower.load({key: x.clone() for key, x in begin.items()})
        found = course(clone, follower, 20, start=100)
        assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) > 1e-6, name


def test_gradients_are_copies_over_the_number_of_copies() -> None:
    config, factors = CASES["lstm"]
    small = build(config)
    batch = rows_of(random_tokens())
    small(batch).loss_sum.backward()
    grown, weights = grow(dict(small.named_parameters()), config, factors, EXACT)
    clone = LanguageModel.build(grown, 0, dtype=torch.float64)
    clone.load_state_dict(weights)
    clone(batch).loss_sum.backward()
    gradients = {f"exp_avg.{name}": p.grad for name, p in small.named_parameters()}
    expected = grow_state(gradients, config, factors, EXACT, "identity")
    for name, p in clone.named_parameters():
        torch.testing.assert_close(p.grad, expected[f"exp_avg.{name}"], rtol=1e-10, atol=1e-12)


def test_identity_blocks_start_without_a_history() -> None:
    config = TINY["qlstm"]
    small = build(config)
    optimizer = AdamW(small, {})
    course(small, optimizer, 2, start=0)
    state = grow_state(optimizer.state(), config, Factors(depth=2), EXACT, "identity")
    assert "exp_avg.blocks.0.mlp.up.weight" in state and "exp_avg.blocks.1.mlp.up.weight" not in state
    assert torch.equal(state["exp_avg.blocks.2.mlp.up.weight"], optimizer.state()["exp_avg.blocks.1.mlp.up.weight"])
    stacked = grow_state(optimizer.state(), config, Factors(depth=2), EXACT, "stack")
    assert "exp_avg.blocks.3.mlp.up.weight" in stacked
    with pytest.raises(ValueError, match="unknown kind"):
        grow_state({"hessian.embedding.weight": torch.zeros(1)}, config, Factors(), EXACT, "stack")
