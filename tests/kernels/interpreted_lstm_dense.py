"""lstm_dense's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1.

D = SLICE runs the kernel that keeps all steps, with one program per group, because the interpreter runs programs one
after another; every other D runs step by step.
"""

import pytest
import torch
from numerics import assert_bitwise, assert_resets_stop_a_nan, relative, run

from hotplate.kernels.lstm_dense import lstm_dense, persistent

pytestmark = pytest.mark.usefixtures("poisoned_memory")

LIMITS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # bfloat16 is cut, not rounded, here
D, BB = persistent.SLICE, persistent.ROWS


def inputs(B, T, D, dtype):
    recurrent = (torch.randn(4, D, D) / D**0.5).to(dtype)
    return [torch.randn(B, T, 4, D).to(dtype), recurrent, torch.randn(B, D).to(dtype).float(), torch.randn(B, D)]


@pytest.mark.parametrize(
    ("shape", "dtype", "resets"),
    [
        ((3, 4, D), torch.float32, [(0, 0), (1, 2), (1, 3), (2, 3)]),
        ((BB + 1, 3, D), torch.float32, [(BB, 1)]),
        ((4 * BB, 2, D), torch.float32, [(63, 1)]),
        ((1, 1, D), torch.float32, []),
        ((3, 4, D), torch.float16, [(0, 1)]),
        ((3, 4, D), torch.bfloat16, [(0, 1)]),
        ((3, 4, 37), torch.float32, [(0, 0), (1, 2), (1, 3), (2, 3)]),
        ((1, 1, 5), torch.float32, [(0, 0)]),
        ((2, 2, 257), torch.float32, [(1, 1)]),
        ((3, 4, 33), torch.float16, [(0, 1)]),
        ((3, 4, 33), torch.bfloat16, []),
    ],
    ids=str,
)
def test_error_is_within_limit(shape, dtype, resets):
    at = None
    if resets:
        at = torch.zeros(shape[:2], dtype=torch.bool)
        for row, step in resets:
            at[row, step] = True
    leaves = inputs(*shape, dtype)
    wide = [x.double() for x in leaves]
    upstream = [torch.randn_like(y).to(dtype if n == 0 else torch.float32) for n, y in enumerate(lstm_dense(*wide))]
    ours, truth = (
        run(lambda *x, impl=impl: lstm_dense(*x, at, forget_offset=0.7, impl=impl), source, upstream)
        for impl, source in (("triton", leaves), ("reference", wide))
    )
    for n, (mine, true) in enumerate(zip(ours, truth, strict=True)):
        assert mine.isfinite().all(), f"result {n} is not finite"
        if true.norm() == 0:
            assert mine.norm() == 0, f"result {n} is zero by definition"
        else:
            assert relative(mine, true) <= LIMITS[dtype], f"result {n}: relative error {relative(mine, true):.2e}"


@pytest.mark.parametrize("width", [D, 20])
def test_a_carried_state_continues_the_run(width):
    gates, recurrent, h0, c0 = inputs(2, 5, width, torch.float16)
    whole = lstm_dense(gates, recurrent, h0, c0, impl="triton")
    h1, *state = lstm_dense(gates[:, :2], recurrent, h0, c0, impl="triton")
    h2, *state = lstm_dense(gates[:, 2:], recurrent, *state, impl="triton")
    for mine, other in zip((torch.cat([h1, h2], 1), *state), whole, strict=True):
        assert_bitwise("split", mine, other)


@pytest.mark.parametrize("width", [D, 20])
def test_packed_documents_are_each_document_alone(width):
    gates, recurrent, _, _ = inputs(1, 5, width, torch.float32)
    resets = torch.tensor([[True, False, True, True, False]])
    h, _, _ = lstm_dense(gates, recurrent, None, None, resets, impl="triton")
    spans = (slice(0, 2), slice(2, 3), slice(3, 5))
    assert_bitwise("h", h, torch.cat([lstm_dense(gates[:, s], recurrent, impl="triton")[0] for s in spans], 1))


@pytest.mark.parametrize("width", [D, 20])
def test_torch_accepts_the_operator(width):
    gates, recurrent, h0, c0 = inputs(2, 2, width, torch.float32)
    gates, *others = (x.requires_grad_() for x in (gates[:, :, :, None], recurrent[:, None], h0[:, None], c0[:, None]))
    torch.library.opcheck(torch.ops.hotplate.lstm_dense.default, (gates, None, *others, None, 0.5, "triton", True))


@pytest.mark.parametrize("width", [D, 20])
def test_a_nan_does_not_outlive_a_reset(width):
    gates, recurrent, *starts = inputs(2, 9, width, torch.float32)
    assert_resets_stop_a_nan(lambda gates, *rest: lstm_dense(gates, recurrent, *rest, impl="triton"), gates, starts)
