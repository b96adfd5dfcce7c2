"""Blocks compiled or recomputed: the same losses and gradients, one graph per block, and less memory kept."""

import pytest
import torch
from models import TINY, build, random_tokens, rows_of

from hotplate.model import axes
from hotplate.model.lm import LanguageModel


def loss_and_gradients(model: LanguageModel) -> list[torch.Tensor]:
    loss = model(rows_of(random_tokens(2, 16))).loss_sum
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("name", TINY)
def test_recomputation_changes_rounding_alone_and_keeps_less(name: str) -> None:
    model = build(TINY[name], torch.float32)
    expected = loss_and_gradients(model)

    def kept() -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.update({x.data_ptr(): x.nbytes}) or x, lambda x: x
        ):
            model(rows_of(random_tokens(2, 16)))
        return sum(sizes.values())

    before = kept()
    model.execute(recompute=True)
    found = loss_and_gradients(model)
    # A block's last sum is made apart then: only where C makes it together with the norm that follows, bits may differ.
    together = {"rtol": 1e-5, "atol": 1e-6} if TINY[name].norm == "rmsnorm" else {"rtol": 0, "atol": 0}
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, **together)
    assert kept() < 0.8 * before


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_no_bias_loses_its_gradient_to_what_follows(monkeypatch, name: str, recompute: bool) -> None:
    model = build(TINY[name])
    expected = loss_and_gradients(model)
    asked = []
    monkeypatch.setattr(axes, "saves_a_pass", lambda x: asked.append(x) or True)
    model.execute(recompute=recompute)
    found = loss_and_gradients(model)
    assert len(asked) >= (2 if TINY[name].bias == "all" else 0) * TINY[name].layers
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", ["gpt", "lstm_dense", "lstm_diagonal"])
def test_nor_in_compiled_blocks(monkeypatch, name: str) -> None:
    torch.compiler.reset()
    model = build(TINY[name], torch.float32)
    expected = loss_and_gradients(model)
    monkeypatch.setattr(axes, "saves_a_pass", lambda x: True)
    model.execute(compiled=True)
    for mine, other in zip(loss_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["gpt", "qlstm", "lstm", "decoder"])
def test_compiled_blocks_are_one_graph_each_and_agree(name: str) -> None:
    """fullgraph makes every graph break an error; operators in C stay calls of the graph."""
    torch.compiler.reset()
    model = build(TINY[name], torch.float32)
    expected = loss_and_gradients(model)
    model.execute(compiled=True)
    for mine, other in zip(loss_and_gradients(model), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # scoring runs blocks as they are written, whatever their shapes
        for steps in range(3, 14):
            model.scores(rows_of(random_tokens(1, steps)))
    torch.compiler.reset()
