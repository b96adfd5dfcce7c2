"""lstm_diagonal's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from numerics import assert_bitwise, assert_resets_stop_a_nan, check, run

from hotplate.kernels.lstm_diagonal import lstm_diagonal, streaming

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SPAN, COLUMNS = streaming.SPAN, streaming.COLUMNS_PER_WARP * streaming.NUM_WARPS


def form(impl, resets=None, **options):
    return lambda gates, recurrent, *starts: lstm_diagonal(
        gates, recurrent, *(starts or [None, None]), resets, impl=impl, **options
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1, 29), torch.float32),
        ((1, 1, 33), torch.bfloat16),
        ((3, 5, 43), torch.float32),
        ((1, SPAN, 43), torch.bfloat16),
        ((1, SPAN + 1, 43), torch.float32),
        ((2, SPAN + 1, 64), torch.float16),
        ((1, 2, COLUMNS + 1), torch.float32),
    ],
    ids=str,
)
def test_error_is_within_budget(shape, dtype):
    B, T, D = shape
    options = {"resets": torch.rand(B, T) < 0.3, "forget_offset": 1.0}

    def draw():
        return torch.randn(B, T, 4, D).to(dtype), torch.randn(4, D), torch.randn(B, D), torch.randn(B, D)

    check(form("triton", **options), form("reference", **options), draw)


def test_one_feature_is_the_first_of_many():
    """Features do not meet, so a single one has the bits that it has among others."""
    many = [torch.randn(1, 1, 4, 5), torch.randn(4, 5), torch.randn(1, 5), torch.randn(1, 5)]
    upstream = [torch.randn(1, 1, 5), torch.randn(1, 5), torch.randn(1, 5)]
    op = form("triton", forget_offset=1.0)
    alone = run(op, [x[..., :1] for x in many], [g[..., :1] for g in upstream])
    for n, (mine, other) in enumerate(zip(alone, run(op, many, upstream), strict=True)):
        assert_bitwise(f"result {n}", mine, other[..., :1])


def test_resets_at_every_place_and_no_start():
    """Row 0 is reset at every even step, row 1 at every odd one."""
    T = SPAN + 1
    resets = (torch.arange(T) + torch.arange(2)[:, None]) % 2 == 0
    check(form("triton", resets), form("reference", resets), lambda: [torch.randn(2, T, 4, 64), torch.randn(4, 64)])


def test_runs_repeat_bitwise():
    inputs, upstream = [torch.randn(1, 9, 4, 3), torch.randn(4, 3)], [torch.randn(1, 9, 3), *torch.randn(2, 1, 3)]
    for mine, other in zip(*(run(form("triton"), inputs, upstream) for _ in range(2)), strict=True):
        assert_bitwise("again", mine, other)


def test_a_nan_shows():
    gates = torch.randn(1, 4, 4, 3)
    gates[0, 1, 1, 0] = torch.nan
    with torch.no_grad():
        h, h_last, _ = lstm_diagonal(gates, torch.randn(4, 3), impl="triton")
    assert h[0, 1:, 0].isnan().all() and h_last[0, 0].isnan() and h[..., 1:].isfinite().all()


def test_a_nan_does_not_outlive_a_reset():
    recurrent, starts = torch.randn(4, 5), [torch.randn(2, 5), torch.randn(2, 5)]
    assert_resets_stop_a_nan(
        lambda gates, *rest: lstm_diagonal(gates, recurrent, *rest, impl="triton"), torch.randn(2, 9, 4, 5), starts
    )
