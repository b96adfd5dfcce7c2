"""One update: accumulation equals a bigger batch, clipping, skipping, precision, and both optimisers."""

from dataclasses import replace

import pytest
import torch

from hotplate.model.batch import Batch
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.config import OptimizerConfig
from hotplate.train.errors import InputError
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.shares import Shares
from hotplate.train.step import Step
from hotplate.train.throughput import random_batch

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
CONFIG = replace(PRESETS["decoder-nano"], layers=2, width=32, ffn=48, vocab=64)
RECURRENT = replace(PRESETS["lstm-nano"], layers=1, width=32, ffn=48, vocab=64)


def slices(batch: Batch, parts: int) -> list[Batch]:
    size = batch.rows // parts
    return [batch._map(lambda x, i=i: x[i * size : (i + 1) * size]) for i in range(parts)]


def make(config=CONFIG, precision="fp32", rows=8, **options):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = LanguageModel.build(config, 0, dtype=dtype)
    optimizer = Optimizer(model, OptimizerConfig(**{"lr": 1e-2, **options}))
    return model, optimizer, Step(model, optimizer, ALONE, precision, targets=rows * 16)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_accumulation_equals_one_large_batch(kind: str) -> None:
    batch = random_batch(CONFIG, 8, 16, CPU)
    weights = torch.rand(8, 16, generator=torch.Generator().manual_seed(1)).round()  # unequal counts per slice
    batch = replace(batch, weights=weights)
    ends = []
    for parts in (1, 4):
        model, _, step = make(kind=kind, eps=1e-3)  # with a tiny eps, Adam's first step is the sign of rounding errors
        update, _ = step(slices(batch, parts), [None] * parts, 1e-2)
        ends.append(([p.detach().clone() for p in model.parameters()], update))
    for a, b in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    assert ends[0][1].loss_sum.item() == pytest.approx(ends[1][1].loss_sum.item(), rel=1e-6)
    assert ends[0][1].norm.item() == pytest.approx(ends[1][1].norm.item(), rel=1e-5)
    assert ends[0][1].weight_sum == weights.sum()


def test_the_gradient_is_the_mean_over_scored_targets() -> None:
    batch = replace(random_batch(CONFIG, 4, 16, CPU), weights=torch.zeros(4, 16).index_fill_(1, torch.arange(5), 1.0))
    model, _, step = make(rows=4, clip=0.0)
    output = model(batch)
    expected = torch.autograd.grad(output.loss_sum / output.weight_sum, list(model.parameters()))
    update, _ = step([batch], [None], 1e-2)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert update.norm.item() == pytest.approx(norm.item(), rel=1e-5)


def test_adamw_equals_torch_with_clipping_and_decay_on_matrices_only() -> None:
    batch = random_batch(CONFIG, 8, 16, CPU)
    options = {"weight_decay": 0.1, "clip": 0.05, "lr": 3e-3}
    model, _, step = make(**options)
    other = LanguageModel.build(CONFIG, 0)
    decayed = [p for p in other.parameters() if p.dim() >= 2]
    rest = [p for p in other.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(3):
        step([batch], [None], 3e-3)
        output = other(batch)
        (output.loss_sum / output.weight_sum).backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        plain.step()
        plain.zero_grad()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_muon_runs_the_kernel_that_is_named_and_no_other() -> None:
    batch, ends = random_batch(CONFIG, 8, 16, CPU), []
    for impl in ("auto", "reference"):
        model, _, step = make(kind="muon", muon_impl=impl)
        step([batch], [None], 1e-2)
        ends.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    _, _, step = make(kind="muon", muon_impl="triton")
    with pytest.raises(ValueError, match="newton_schulz: want a CUDA tensor"):
        step([batch], [None], 1e-2)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_update_changes_nothing(kind: str, poison: float) -> None:
    batch = random_batch(CONFIG, 8, 16, CPU)
    model, optimizer, step = make(kind=kind)
    step([batch], [None], 1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    state = {key: value.clone() for key, value in optimizer.state_dict().items()}
    bad = replace(batch, weights=batch.weights.clone().index_fill_(0, torch.tensor([3]), poison))
    update, _ = step([bad], [None], 1e-2)
    assert update.skipped == 1.0
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a, b)
    for key, value in optimizer.state_dict().items():
        assert torch.equal(value, state[key]), key
    update, _ = step([batch], [None], 1e-2)
    assert update.skipped == 0.0 and not torch.equal(before[0], next(model.parameters()))


def test_vectors_of_a_diagonal_recurrence_are_neither_orthogonalised_nor_decayed() -> None:
    config = replace(PRESETS["lstm-diagonal-nano"], layers=1, width=32, ffn=48, vocab=64)
    _, optimizer, _ = make(config, kind="muon")
    momenta = {name for name in optimizer.state_dict() if name.startswith("momentum.")}
    assert "momentum.blocks.0.mixer.gates.weight" in momenta
    assert "momentum.blocks.0.mixer.recurrent" not in momenta
    model, optimizer, _ = make(config, kind="adamw", weight_decay=0.1)
    mixer = model.blocks[0].mixer
    vectors, matrix = mixer.recurrent.detach().clone(), mixer.gates.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.5, torch.ones(()))
    assert torch.equal(mixer.recurrent, vectors)
    torch.testing.assert_close(mixer.gates.weight, 0.95 * matrix)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("config", [CONFIG, RECURRENT], ids=["decoder", "lstm"])
def test_a_fixed_batch_is_learned(kind: str, config) -> None:
    batch = replace(random_batch(config, 8, 16, CPU), slots=None)
    _, _, step = make(config, kind=kind, lr=1e-2)
    losses = [step([batch], [None], 1e-2)[0].loss_sum.item() / 128 for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0]


def test_bf16_weights_follow_fp32_through_their_master_copy() -> None:
    batch = random_batch(CONFIG, 8, 16, CPU)
    curves = {}
    for precision in ("fp32", "bf16", "bf16-autocast"):
        model, optimizer, step = make(precision=precision)
        curves[precision] = [step(slices(batch, 2), [None, None], 3e-3)[0].loss_sum.item() / 128 for _ in range(30)]
        if precision == "bf16":
            assert next(model.parameters()).dtype == torch.bfloat16
            masters = {k: v for k, v in optimizer.state_dict().items() if k.startswith("master.")}
            assert len(masters) == len(list(model.parameters()))
            assert all(value.dtype == torch.float32 for value in masters.values())
    for precision in ("bf16", "bf16-autocast"):
        assert curves[precision][-1] == pytest.approx(curves["fp32"][-1], rel=0.05)
        assert curves[precision][-1] < 0.8 * curves[precision][0]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_updates_only_gradient_stays_in_bf16_and_changes_no_bit(kind: str) -> None:
    batch = random_batch(CONFIG, 8, 16, CPU)
    ends = []
    for gathered in (False, True):
        model, optimizer, _ = make(precision="bf16", kind=kind)
        (model(batch).loss_sum / 128).backward()
        optimizer.gather(last=not gathered)
        dtype = torch.float32 if gathered else torch.bfloat16
        assert {gradient.dtype for gradient in optimizer.gradients().values()} == {dtype}
        norm, _ = optimizer.step(1e-2, torch.ones(()))
        assert not optimizer.gradients()
        ends.append([norm, *optimizer.weights().values(), *(p.detach() for p in model.parameters())])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_the_norm_is_over_gradients_of_both_dtypes() -> None:
    """A weight that the last micro-batch alone uses has a gradient in bf16 beside others in fp32."""
    norm = Shares().norm([torch.full((9,), 2.0).bfloat16(), torch.full((4,), 4.0)], CPU)
    assert norm.dtype == torch.float32 and norm == 10.0


def test_gradients_of_several_micro_batches_are_added_in_fp32() -> None:
    batch = random_batch(CONFIG, 8, 16, CPU)
    model, optimizer, _ = make(precision="bf16")
    expected = {}
    for part, last in zip(slices(batch, 2), (False, True), strict=True):
        model(part).loss_sum.backward()
        for name, p in model.named_parameters():
            expected[name] = expected.get(name, 0.0) + p.grad.float()
        optimizer.gather(last)
    found = optimizer.gradients()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_state_is_carried_between_updates_and_cut_from_the_graph() -> None:
    batch = random_batch(RECURRENT, 4, 16, CPU)
    model, _, step = make(RECURRENT, rows=4)
    states = [model.initial_state(2), model.initial_state(2)]
    _, states = step(slices(batch, 2), states, 0.0)
    assert states[0] is not None and not states[0].layers[0]["c"].requires_grad
    expected = model(slices(batch, 2)[1]).state.layers[0]["c"]
    torch.testing.assert_close(states[1].layers[0]["c"], expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer_state_survives_a_dictionary(kind: str, precision: str) -> None:
    batch = random_batch(CONFIG, 8, 16, CPU)
    model, optimizer, step = make(precision=precision, kind=kind)
    step([batch], [None], 1e-2)
    other, copied, again = make(precision=precision, kind=kind)
    copied.load_weights({name: value.clone() for name, value in optimizer.weights().items()})
    copied.load_state_dict({key: value.clone() for key, value in optimizer.state_dict().items()})
    step([batch], [None], 1e-2)
    again([batch], [None], 1e-2)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_foreign_optimizer_state_is_refused() -> None:
    _, optimizer, step = make()
    step([random_batch(CONFIG, 8, 16, CPU)], [None], 1e-2)
    state = optimizer.state_dict()
    _, fresh, _ = make()
    with pytest.raises(InputError, match="no parameter for"):
        fresh.load_state_dict({**state, "exp_avg.blocks.9.mlp.up.weight": torch.zeros(1)})
    key = "exp_avg.blocks.0.mlp.up.weight"
    with pytest.raises(InputError, match="want exp_avg.blocks.0.mlp.up.weight of shape"):
        fresh.load_state_dict({**state, key: torch.zeros(3)})
