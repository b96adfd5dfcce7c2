"""qlstm's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from numerics import assert_bitwise, assert_resets_stop_a_nan, check, run

from hotplate.kernels.qlstm import qlstm, streaming

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SPAN, COLUMNS = streaming.SPAN, streaming.COLUMNS_PER_WARP * streaming.NUM_WARPS


def form(impl, resets=None, **options):
    return lambda gates, *c0: qlstm(gates, *(c0 or [None]), resets, impl=impl, **options)


@pytest.mark.parametrize(
    ("shape", "dtype", "coupled"),
    [
        ((1, 1, 33), torch.bfloat16, False),
        ((1, 1, 33), torch.float16, True),
        ((3, 5, 43), torch.float32, False),
        ((1, SPAN, 43), torch.bfloat16, True),
        ((1, SPAN + 1, 43), torch.float32, True),
        ((1, SPAN + 1, 43), torch.float16, False),
        ((1, 2, COLUMNS + 1), torch.float32, True),
    ],
    ids=str,
)
def test_error_is_within_budget(shape, dtype, coupled):
    B, T, D = shape
    resets = torch.rand(B, T) < 0.3
    options = {"resets": resets, "forget_offset": 1.0, "coupled": coupled}

    def draw():
        return torch.randn(B, T, 3 if coupled else 4, D).to(dtype), torch.randn(B, D)

    check(form("triton", **options), form("reference", **options), draw)


def test_one_feature_is_the_first_of_many():
    """Features do not meet, so a single one has the bits that it has among others."""
    many, upstream = [torch.randn(1, 1, 4, 5), torch.randn(1, 5)], [torch.randn(1, 1, 5), torch.randn(1, 5)]
    op = form("triton", forget_offset=1.0)
    alone = run(op, [x[..., :1] for x in many], [g[..., :1] for g in upstream])
    for n, (mine, other) in enumerate(zip(alone, run(op, many, upstream), strict=True)):
        assert_bitwise(f"result {n}", mine, other[..., :1])


def test_resets_at_every_place_and_no_start():
    """Row 0 is reset at every even step, row 1 at every odd one."""
    T = SPAN + 1
    resets = (torch.arange(T) + torch.arange(2)[:, None]) % 2 == 0
    check(form("triton", resets), form("reference", resets), lambda: [torch.randn(2, T, 4, 64)])


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_error_is_within_budget_for_tiny_and_saturated_gates(scale):
    check(form("triton"), form("reference"), lambda: [scale * torch.randn(1, 9, 4, 64)])


def test_packed_documents_are_each_document_alone_and_runs_repeat():
    starts, T, D = [0, 1, 4], 6, 9
    gates, upstream = torch.randn(1, T, 4, D), torch.randn(1, T, D)
    resets = torch.zeros(1, T, dtype=torch.bool)
    resets[0, starts] = True
    packed = run(form("triton", resets), [gates], [upstream, torch.zeros(1, D)])
    for mine, other in zip(run(form("triton", resets), [gates], [upstream, torch.zeros(1, D)]), packed, strict=True):
        assert_bitwise("again", mine, other)
    for start, stop in zip(starts, [*starts[1:], T], strict=True):
        span = slice(start, stop)
        alone = run(form("triton"), [gates[:, span]], [upstream[:, span], torch.zeros(1, D)])
        assert_bitwise("h", packed[0][:, span], alone[0])
        assert_bitwise("dgates", packed[2][:, span], alone[2])


@pytest.mark.parametrize(("S", "resetting"), [(2, True), (4, False)])
def test_segments_of_time_join(monkeypatch, S, resetting):
    T, D = S * SPAN, 43
    monkeypatch.setattr(streaming, "MOST_SEGMENTS", S)
    assert streaming.segments(1, T, D) == S
    resets = (torch.arange(T) % 11 == 3)[None] if resetting else None
    options = {"resets": resets, "forget_offset": 2.0}
    check(form("triton", **options), form("reference", **options), lambda: [torch.randn(1, T, 4, D), torch.randn(1, D)])


def test_segments_are_whole_spans_and_only_for_few_columns():
    most, full = streaming.MOST_SEGMENTS, streaming.FULL_COLUMNS
    assert streaming.segments(1, most * SPAN, 8) == most and streaming.segments(1, most * SPAN + 1, 8) == 1
    assert streaming.segments(1, 2 * SPAN, 8) == 2 and streaming.segments(1, SPAN, 8) == 1
    assert streaming.segments(full // 64, 1024, 64) == 1 and streaming.segments(full // 64 - 1, 1024, 64) == 2


@pytest.mark.parametrize(
    ("B", "T", "dtype", "coupled"),
    [(3, SPAN + 1, torch.float32, False), (1, 2 * SPAN, torch.float16, True), (2, 3, torch.bfloat16, False)],
    ids=str,
)
def test_the_gradient_of_a_bias_is_the_sum_over_rows_and_steps(B, T, dtype, coupled):
    """Segments of time among them."""
    N, resets = 3 if coupled else 4, torch.rand(B, T) < 0.3

    def biased(impl):
        return lambda gates, bias: qlstm(gates, None, resets, bias=bias, coupled=coupled, impl=impl)

    drawn = [torch.randn(B, T, N, 43).to(dtype), torch.randn(N, 43).to(dtype)]
    check(biased("triton"), biased("reference"), drawn)
    alone = drawn[1].clone().requires_grad_()
    with_others = run(lambda *x: biased("triton")(*x)[0], drawn, [torch.ones(B, T, 43, dtype=dtype)])[2]
    (found,) = torch.autograd.grad(biased("triton")(drawn[0], alone)[0].sum(), alone)
    assert_bitwise("nothing but the bias has a gradient", found, with_others)


def test_a_nan_shows():
    gates = torch.randn(1, 4, 4, 3)
    gates[0, 1, 1, 0] = torch.nan
    with torch.no_grad():
        h, c_last = qlstm(gates, impl="triton")
    assert h[0, 1:, 0].isnan().all() and c_last[0, 0].isnan() and h[..., 1:].isfinite().all()


def test_a_nan_does_not_outlive_a_reset():
    assert_resets_stop_a_nan(
        lambda gates, c0, resets: qlstm(gates, c0, resets, impl="triton"), torch.randn(2, 9, 4, 5), [torch.randn(2, 5)]
    )


CHEAP = ("test_schema", "test_faketensor")  # the others run the kernels again and again, and do not look at impl


def test_the_operator_keeps_its_promises_to_torch():
    from hotplate.kernels.qlstm.registered import forward

    gates, bias, c0 = (torch.randn(shape, requires_grad=True) for shape in ((1, 2, 4, 3), (4, 3), (1, 3)))
    torch.library.opcheck(forward, (gates, bias, c0, torch.rand(1, 2) < 0.5, 0.5, "triton", True), test_utils=CHEAP)
