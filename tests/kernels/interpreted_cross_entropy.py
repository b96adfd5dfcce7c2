"""The loss's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from numerics import assert_bitwise, check, run

from hotplate.kernels.cross_entropy import linear_cross_entropy, linear_losses, streaming

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy: logarithms of rows beyond the chunk
]
OPTIONS = {
    "plain": {},
    "all": {"logit_scale": 0.5, "softcap": 6.0, "label_smoothing": 0.1, "z_loss": 0.01},
}


def inputs(N, D, V, dtype=torch.float32):
    """x, weight, targets (a seventh ignored), weights (a quarter of them zero)."""
    targets = torch.randint(V, (N,)).masked_fill(torch.arange(N) % 7 == 3, -100)
    return torch.randn(N, D).to(dtype), torch.randn(V, D).to(dtype), targets, torch.rand(N) * (torch.rand(N) > 0.25)


def total(targets, weights, **options):
    return lambda impl: lambda x, w: linear_cross_entropy(x, w, targets, weights, impl=impl, **options).loss


def by_row(targets, **options):
    return lambda impl: lambda x, w: linear_losses(x, w, targets, impl=impl, **options)


@pytest.fixture(params=["tile", "row"])
def way(request, monkeypatch):
    """Whole rows in registers, and rows in steps."""
    if request.param == "row":
        monkeypatch.setattr(streaming, "ONE_TILE", 0)
        monkeypatch.setattr(streaming, "BLOCK_LOGITS", 64)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_error_is_within_budget(way, options):
    x, weight, targets, weights = inputs(15, 24, 129, torch.bfloat16 if options else torch.float32)
    for form in (total(targets, weights, **options), by_row(targets, **options)):
        check(form("triton"), form("reference"), [x, weight])


def test_two_ids_and_half_precision():
    x, weight, targets, weights = inputs(70, 20, 2, torch.float16)
    form = total(targets, weights)
    check(form("triton"), form("reference"), [x, weight])


def test_chunks_rows_without_weight_and_repetition(way):
    x, weight, targets, weights = inputs(12, 8, 70)
    x[weights == 0] = torch.nan
    form = total(targets, weights, chunk_bytes=5 * 70 * 4)("triton")
    first, again = (run(form, [x, weight], [torch.ones(())]) for _ in range(2))
    assert all(y.isfinite().all() for y in first)
    assert not first[1][(weights == 0) | (targets == -100)].any()
    for a, b in zip(first, again, strict=True):
        assert_bitwise("again", a, b)


def test_padding_beyond_the_vocabulary_is_not_looked_at(way):
    """On a GPU rows are a multiple of 16 apart; what lies between holds anything."""
    from hotplate.kernels.cross_entropy.reference import Loss

    logits, targets, factors = torch.randn(5, 21), torch.randint(21, (5,)), torch.rand(5)
    results = []
    for stride in (21, 32):
        buffer = torch.full((5, stride), torch.nan)
        buffer[:, :21] = logits
        losses, lse = torch.empty(5), torch.empty(5)
        form = Loss(smoothing=0.1, z=0.01)
        d = streaming.rows(buffer[:, :21], targets, factors, losses, lse, False, form, torch.float32)
        results.append([d.clone(), losses, lse])
    for a, b in zip(*results, strict=True):
        assert_bitwise("padded", a, b)
