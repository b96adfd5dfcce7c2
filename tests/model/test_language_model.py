"""Models against independent forward passes, and their own promises about state and documents."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from independent import plain_decoder, plain_gpt, plain_recurrent
from models import COUPLED_TINY, RECURRENT, RELU2, SHARED, TINY, build, random_tokens, rows_of

from hotplate.model.axes import parameter_axes
from hotplate.model.config import MixerConfig, ModelConfig
from hotplate.model.generate import generate, penalise
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.model.state import State

FORWARDS = [
    ("gpt", TINY["gpt"], plain_gpt),
    ("qlstm", TINY["qlstm"], plain_recurrent),
    ("qlstm-coupled", COUPLED_TINY, plain_recurrent),
    ("lstm", TINY["lstm"], plain_recurrent),
    ("lstm-dense", TINY["lstm_dense"], plain_recurrent),
    ("lstm-diagonal", TINY["lstm_diagonal"], plain_recurrent),
    ("lstm-shared", SHARED, plain_recurrent),
    ("decoder", TINY["decoder"], plain_decoder),
    ("decoder-relu2", RELU2, plain_decoder),
]


@pytest.mark.parametrize(("name", "config", "plain"), FORWARDS, ids=[name for name, _, _ in FORWARDS])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_logits_and_loss_equal_an_independent_forward(impl, name, config, plain) -> None:
    model, tokens = build(replace(config, mixer=replace(config.mixer, impl=impl))), random_tokens()
    expected = plain(model, tokens)
    batch = rows_of(tokens)
    x, _ = model.hidden(batch)
    tolerance = 2e-6 if config.positions == "rotary" else 1e-12  # rotation angles are fp32 by design
    torch.testing.assert_close(model.logits(x), expected, rtol=tolerance, atol=tolerance)
    nll = F.cross_entropy(expected.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    output = model(batch)
    torch.testing.assert_close(output.loss_sum.double(), nll, rtol=1e-6, atol=1e-6)
    assert output.weight_sum == tokens.numel()


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient_and_declares_axes(name: str) -> None:
    model = build(TINY[name])
    model(rows_of(random_tokens())).loss_sum.backward()
    for full, (parameter, axes) in parameter_axes(model).items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, full
        assert len(axes.names) == parameter.dim(), full
        assert not axes.blocks or sum(axes.blocks) == parameter.shape[0], full


@pytest.mark.parametrize("name", TINY)
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model = build(TINY[name])
    tokens = random_tokens(2, 12)
    starts = [(0, 0), (0, 5), (0, 6), (1, 0), (1, 9)]
    resets = torch.zeros(2, 12, dtype=torch.bool)
    for row, column in starts:
        resets[row, column] = True
    flat = [row * 12 + column for row, column in starts]
    cu_seqlens = torch.tensor([*flat, 24, 24], dtype=torch.int32)
    positions = torch.cat([torch.arange(b - a) for a, b in zip(flat, [*flat[1:], 24], strict=True)]).view(2, 12)
    packed = rows_of(tokens, resets=resets, cu_seqlens=cu_seqlens, positions=positions)
    x, _ = model.hidden(packed)
    together = x.flatten(0, 1)
    for start, stop in zip(flat, [*flat[1:], 24], strict=True):
        alone, _ = model.hidden(rows_of(tokens.flatten()[None, start:stop]))
        torch.testing.assert_close(together[start:stop], alone[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", RECURRENT)
def test_state_carried_over_windows_equals_one_long_window(name: str) -> None:
    model, tokens = build(TINY[name]), random_tokens(2, 14)
    whole, final = model.hidden(rows_of(tokens))
    first, state = model.hidden(rows_of(tokens[:, :5]))
    second, state = model.hidden(rows_of(tokens[:, 5:]), state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
    for mine, other in zip(state.layers, final.layers, strict=True):
        for key in mine:
            torch.testing.assert_close(mine[key], other[key], rtol=1e-12, atol=1e-12)


def test_state_selects_resets_and_survives_a_dictionary() -> None:
    model = build(TINY["lstm"])
    _, state = model.hidden(rows_of(random_tokens(4, 6)))
    picked = state.select(torch.tensor([2, 0]))
    assert torch.equal(picked.layers[1]["c"], state.layers[1]["c"][[2, 0]])
    cleared = state.reset(torch.tensor([False, True, False, False]))
    assert not cleared.layers[0]["h"][1].any() and torch.equal(cleared.layers[0]["h"][2], state.layers[0]["h"][2])
    again = State.from_dict(state.to_dict(), 2)
    assert torch.equal(again.layers[1]["h"], state.layers[1]["h"])
    halves = [state.select(torch.tensor(rows)) for rows in ([0, 1], [2, 3])]
    assert torch.equal(State.concatenate(halves).layers[0]["c"], state.layers[0]["c"])


@pytest.mark.parametrize("name", TINY)
def test_greedy_generation_equals_rereading_everything(name: str) -> None:
    model, prompt = build(TINY[name]), random_tokens(2, 4)
    drawn = generate(model, prompt, 12, temperature=0)
    tokens = prompt
    for _ in range(12):
        x, _ = model.hidden(rows_of(tokens))
        tokens = torch.cat([tokens, model.logits(x[:, -1]).argmax(-1, keepdim=True)], 1)
    assert torch.equal(drawn, tokens[:, 4:])


@pytest.mark.parametrize("name", TINY)
def test_generation_runs_past_the_context(name: str) -> None:
    model = build(TINY[name])
    drawn = generate(
        model, random_tokens(1, 40), 50, temperature=0.9, top_k=5, generator=torch.Generator().manual_seed(0)
    )
    again = generate(
        model, random_tokens(1, 40), 50, temperature=0.9, top_k=5, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.shape == (1, 50) and torch.equal(drawn, again)


def test_sampling_respects_top_k_and_temperature() -> None:
    model, prompt = build(TINY["gpt"]), random_tokens(1, 3)
    x, _ = model.hidden(rows_of(prompt))
    best = set(model.logits(x[:, -1]).topk(3).indices[0].tolist())
    drawn = {int(generate(model, prompt, 1, top_k=3, generator=torch.Generator().manual_seed(s))) for s in range(60)}
    assert drawn <= best and len(drawn) > 1
    cold = {
        int(generate(model, prompt, 1, temperature=1e-4, generator=torch.Generator().manual_seed(s))) for s in range(9)
    }
    assert cold == {int(model.logits(x[:, -1]).argmax())}


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = replace(PRESETS["gpt-nano"], vocab=512)
    first, second, other = (LanguageModel.build(config, seed) for seed in (7, 7, 8))
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() < 2 or not torch.equal(a, c)
    assert first.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert first.blocks[0].mlp.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert not first.blocks[0].mlp.up.bias.any() and (first.norm.weight == 1).all()


def test_bad_configs_and_windows_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="divides heads 8"):
        MixerConfig(heads=8, kv_heads=3)
    with pytest.raises(ValueError, match="sizes >= 1"):
        ModelConfig(layers=0)
    with pytest.raises(ValueError, match="even number of rotating features, got 7"):
        ModelConfig(positions="rotary", mixer=MixerConfig(head_width=7))
    with pytest.raises(ValueError, match="rotary positions need"):
        ModelConfig(positions="rotary", mixer=MixerConfig(kind="qlstm"))
    with pytest.raises(ValueError, match="coupled belongs to kind qlstm"):
        MixerConfig(kind="lstm", coupled=True)
    with pytest.raises(ValueError, match="shared_recurrent belongs to kind lstm"):
        MixerConfig(kind="lstm_dense", shared_recurrent=True)
    with pytest.raises(ValueError, match="context = 32"):
        build(TINY["gpt"])(rows_of(random_tokens(1, 33)))
    with pytest.raises(ValueError, match="start from the document symbol"):
        generate(build(TINY["gpt"]), torch.empty(1, 0, dtype=torch.long), 3)


def test_repetition_is_penalised_as_transformers_does_and_only_allowed_ids_are_drawn() -> None:
    logits, ids = torch.randn(3, 11), torch.randint(0, 11, (3, 6))
    seen = torch.zeros(3, 11, dtype=torch.bool).scatter_(1, ids, True)
    from transformers import RepetitionPenaltyLogitsProcessor

    want = RepetitionPenaltyLogitsProcessor(1.1)(ids, logits.clone())
    assert torch.equal(penalise(logits, seen, 1.1), want)
    model = build(TINY["decoder"], torch.float32)
    allowed = torch.zeros(model.config.vocab, dtype=torch.bool)
    allowed[[3, 5, 8]] = True
    prompt = random_tokens(2, 4)
    drawn = generate(model, prompt, 12, temperature=2.0, repetition_penalty=1.3, allowed=allowed)
    assert set(drawn.flatten().tolist()) <= {3, 5, 8}
    for wrong in ({"repetition_penalty": 0.0}, {"allowed": torch.zeros(model.config.vocab, dtype=torch.bool)}):
        with pytest.raises(ValueError, match="want"):
            generate(model, prompt, 1, **wrong)


def test_rows_by_rows_are_the_batch() -> None:
    batch = replace(rows_of(random_tokens(5, 8)), slots=None)
    parts = list(batch.by_rows(2))
    assert [part.rows for part in parts] == [2, 2, 1]
    for name in ("tokens", "targets", "weights", "positions", "target_bytes"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
