"""lstm's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1.

The interpreter cuts float32 to bfloat16 where a GPU rounds, hence the limit of bfloat16.
"""

import pytest
import torch
from numerics import assert_bitwise, assert_resets_stop_a_nan, relative, run

from hotplate.kernels.lstm import lstm, parallel, resident

pytestmark = pytest.mark.usefixtures("poisoned_memory")

LIMITS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def resets_at(B, T, *places):
    resets = torch.zeros(B, T, dtype=torch.bool)
    for row, step in places:
        resets[row, step] = True
    return resets


def inputs(B, T, H, K, heads, dtype=torch.float32):
    recurrent = (torch.randn(4, heads, K, K) / K**0.5).to(dtype)
    return [
        torch.randn(B, T, 4, H, K).to(dtype),
        recurrent,
        torch.randn(B, H, K).to(dtype).float(),
        torch.randn(B, H, K),
    ]


def assert_agrees(leaves, resets):
    """Outputs and every gradient against the definition in float64."""

    def form(impl):
        return lambda *x: lstm(*x, resets, forget_offset=0.7, impl=impl)

    dtype, wide = leaves[0].dtype, [x.double() for x in leaves]
    upstream = [torch.randn_like(y).to(dtype if n == 0 else torch.float32) for n, y in enumerate(lstm(*wide))]
    results = zip(run(form("triton"), leaves, upstream), run(form("reference"), wide, upstream), strict=True)
    for n, (mine, true) in enumerate(results):
        assert mine.isfinite().all(), f"result {n} is not finite"
        if true.norm() == 0:
            assert mine.norm() == 0, f"result {n} is zero by definition"
        else:
            assert relative(mine, true) <= LIMITS[dtype], f"result {n}: relative error {relative(mine, true):.2e}"


BB = resident.ROWS
CASES = {
    "reset at every step": (2, 4, 2, 16, 2, torch.float32, torch.ones(2, 4, dtype=torch.bool)),
    "resets at both ends": (2, 4, 1, 16, 1, torch.float32, resets_at(2, 4, (0, 0), (1, 3))),
    "consecutive resets": (2, 4, 2, 16, 1, torch.float32, resets_at(2, 4, (0, 1), (0, 2), (1, 0), (1, 1))),
    "one matrix for all heads": (3, 3, 3, 16, 1, torch.float32, None),
    "one step and row": (1, 1, 2, 16, 2, torch.float32, None),
    "one row beyond a block": (BB + 1, 3, 1, 17, 1, torch.float32, resets_at(BB + 1, 3, (BB, 1))),
    "narrow head": (5, 3, 3, 5, 3, torch.float32, resets_at(5, 3, (4, 2))),
    "one pair beyond a block": (13, 5, 1, 8, 1, torch.float32, resets_at(13, 5, (12, 4))),
    "float16": (3, 5, 2, 20, 2, torch.float16, resets_at(3, 5, (1, 2))),
    "bfloat16": (3, 5, 2, 20, 2, torch.bfloat16, resets_at(3, 5, (1, 2))),
}


@pytest.mark.parametrize("case", CASES)
def test_error_is_within_limit(case):
    *shape, dtype, resets = CASES[case]
    assert_agrees(inputs(*shape, dtype), resets)


def test_packed_documents_are_each_document_alone():
    gates, recurrent, _, _ = inputs(1, 5, 2, 16, 2)
    upstream = torch.randn(1, 5, 2, 16)
    packed = gates.clone().requires_grad_()
    h, _, _ = lstm(packed, recurrent, None, None, resets_at(1, 5, (0, 0), (0, 2), (0, 3)), impl="triton")
    h.backward(upstream)
    for span in (slice(0, 2), slice(2, 3), slice(3, 5)):
        leaf = gates[:, span].clone().requires_grad_()
        alone, _, _ = lstm(leaf, recurrent, impl="triton")
        alone.backward(upstream[:, span])
        assert_bitwise("h", h[:, span], alone)
        assert_bitwise("dgates", packed.grad[:, span], leaf.grad)


def test_a_carried_state_continues_the_run():
    gates, recurrent, h0, c0 = inputs(2, 5, 1, 16, 1, torch.float16)
    whole = lstm(gates, recurrent, h0, c0, impl="triton")
    h1, *state = lstm(gates[:, :2], recurrent, h0, c0, impl="triton")
    h2, *state = lstm(gates[:, 2:], recurrent, *state, impl="triton")
    for mine, other in zip((torch.cat([h1, h2], 1), *state), whole, strict=True):
        assert_bitwise("split", mine, other)


def test_runs_repeat_bitwise():
    leaves = inputs(2, 3, 2, 16, 2)
    upstream = [torch.randn(2, 3, 2, 16), torch.randn(2, 2, 16), torch.randn(2, 2, 16)]
    first, second = (run(lambda *x: lstm(*x, impl="triton"), leaves, upstream) for _ in range(2))
    for mine, other in zip(first, second, strict=True):
        assert_bitwise("repetition", mine, other)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("K", "heads"), [(5, 2), (16, 1)])
def test_the_gradient_of_a_bias_is_the_sum_over_rows_and_steps(monkeypatch, dtype, K, heads):
    """Stripes of several blocks of pairs, the last of them not full."""
    monkeypatch.setattr(parallel, "PROGRAMS", 16)
    monkeypatch.setattr(parallel, "PAIRS", dict.fromkeys(LIMITS, 16))
    gates, *others = inputs(3, 14, 2, K, heads, dtype)
    bias, resets = torch.randn(4, 2, K).to(dtype), resets_at(3, 14, (0, 3), (2, 0))
    leaves, wide = ([x.to(d) for x in (gates, bias, *others)] for d in (dtype, torch.float64))
    leaves[3:] = [x.float() for x in leaves[3:]]

    def form(impl):
        return lambda gates, bias, *rest: lstm(gates, *rest, resets, bias=bias, impl=impl)

    upstream = [torch.randn(3, 14, 2, K).to(dtype), *torch.randn(2, 3, 2, K)]
    mine = run(form("triton"), leaves, upstream)
    for n, (ours, true) in enumerate(zip(mine, run(form("reference"), wide, upstream), strict=True)):
        assert relative(ours, true) <= LIMITS[dtype], f"result {n}: relative error {relative(ours, true):.2e}"
    assert_bitwise("again", mine[4], run(form("triton"), leaves, upstream)[4])
    alone = leaves[1].clone().requires_grad_()
    (found,) = torch.autograd.grad(form("triton")(leaves[0], alone, *leaves[2:]), alone, upstream)
    assert_bitwise("nothing but the bias has a gradient", found, mine[4])


def test_strides_do_not_matter():
    gates, recurrent, h0, c0 = inputs(2, 3, 2, 16, 2)
    strided = gates.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    mine = lstm(strided, recurrent.mT.contiguous().mT, h0, c0.mT.contiguous().mT, impl="triton")
    for ours, other in zip(mine, lstm(gates, recurrent, h0, c0, impl="triton"), strict=True):
        assert_bitwise("strides", ours, other)


def test_a_head_too_wide_for_one_multiprocessor_is_refused():
    gates, recurrent, _, _ = inputs(1, 1, 1, 65, 1)
    with pytest.raises(ValueError, match=r"^lstm: want K <= 64 with torch.float32 and impl='triton', got 65"):
        lstm(gates, recurrent, impl="triton")


def test_torch_accepts_the_operator():
    gates, *others = [x.requires_grad_() for x in inputs(2, 2, 1, 16, 1)]
    bias = torch.randn(4, 1, 16, requires_grad=True)
    torch.library.opcheck(
        torch.ops.hotplate.lstm.default, (gates, bias, *others, resets_at(2, 2, (0, 1)), 0.5, "triton", True)
    )


def test_a_nan_does_not_outlive_a_reset():
    gates, recurrent, *starts = inputs(2, 9, 1, 5, 1)
    assert_resets_stop_a_nan(lambda gates, *rest: lstm(gates, recurrent, *rest, impl="triton"), gates, starts)
