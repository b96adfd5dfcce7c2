import norms
import pytest
import torch
from torch.nn.functional import rms_norm

from hotplate.kernels import native
from hotplate.kernels.rmsnorm import add_rmsnorm, rmsnorm

pytestmark = pytest.mark.usefixtures("poisoned_memory")
FORMS = ["eager", *(["native"] if native.why_not("rmsnorm") is None else [])]
VECTORS = 1


def torchs_own(*arguments):
    *rows, weight = arguments
    total = sum(rows)
    y = rms_norm(total, weight.shape, weight, 1e-3)
    return y if len(rows) == 1 else (y, total)


def test_it_is_torchs_rms_norm():
    x, weight = norms.inputs((9, 30), 1, 1, torch.float64)
    torch.testing.assert_close(rmsnorm(x, weight, 1e-3, impl="reference"), torchs_own(x, weight))


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", norms.SHAPES, ids=str)
def test_error_is_within_budget(shape, dtype, impl):
    if impl == "native" and dtype == torch.float16:
        pytest.raises(ValueError, rmsnorm, *norms.inputs(shape, 1, VECTORS, dtype), impl=impl)
        return
    own = torchs_own if impl == "eager" else None  # then the definition is torch's operations, one by one
    norms.assert_within_budget(rmsnorm, norms.inputs(shape, 1, VECTORS, dtype), impl, own)
    norms.assert_within_budget(add_rmsnorm, norms.inputs(shape, 2, VECTORS, dtype), impl, own)


@pytest.mark.parametrize("impl", FORMS)
def test_narrow_rows_with_wide_weights(impl):
    """As under autocast: the result has the dtype of the rows."""
    x, *vectors = norms.inputs((9, 30), 1, VECTORS)
    y = rmsnorm(x.bfloat16(), *vectors, impl=impl)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), rmsnorm(x, *vectors, impl="reference"), rtol=2e-2, atol=2e-2)


def test_gradients_agree_with_differences():
    norms.assert_gradients_agree_with_differences(rmsnorm, norms.inputs((3, 5), 1, VECTORS))
    norms.assert_gradients_agree_with_differences(add_rmsnorm, norms.inputs((3, 5), 2, VECTORS))


@pytest.mark.parametrize("impl", FORMS)
def test_promises(impl):
    one, two = norms.inputs((6, 40, 9), 1, VECTORS), norms.inputs((6, 40, 9), 2, VECTORS)
    norms.assert_strides_do_not_matter(add_rmsnorm, two, impl)
    norms.assert_runs_repeat(rmsnorm, one, impl)
    norms.assert_runs_repeat(add_rmsnorm, two, impl)
    norms.assert_the_sum_alone_has_its_gradient(add_rmsnorm, two, impl)
    norms.assert_one_feature(add_rmsnorm, norms.inputs((9, 1), 2, VECTORS), impl)
    assert rmsnorm(one[0][:0], *one[1:], impl=impl).shape == (0, 40, 9)


def test_a_wrong_call_says_what_is_wanted():
    norms.assert_says_what_is_wanted(rmsnorm, norms.inputs((4, 9), 1, VECTORS))
    x, *rest = norms.inputs((4, 9), 1, VECTORS)
    with pytest.raises(ValueError, match=r"rmsnorm: want a residual torch.float32 \[4, 9\] on cpu, got .* \[4, 8\]"):
        add_rmsnorm(x, x[:, :8], *rest)


@pytest.mark.skipif(FORMS == ["eager"], reason="no C compiler")
def test_the_operator_keeps_its_promises_to_torch():
    from hotplate.kernels.norm.native import operator

    leaves = [x.requires_grad_() for x in norms.inputs((3, 8), 2, VECTORS)]
    torch.library.opcheck(operator, (*leaves, *[None] * (2 - VECTORS), 1e-5))
