import pytest
import torch
import torch.nn.functional as F
from numerics import assert_bitwise, check, run

from hotplate.kernels import native
from hotplate.kernels.mlp import activation
from hotplate.kernels.mlp.op import FUSED, KINDS

pytestmark = pytest.mark.usefixtures("poisoned_memory")
FORMS = ["eager", *(["native"] if native.why_not("mlp") is None else [])]
EVERY = [(kind, impl) for impl in FORMS for kind in (KINDS if impl == "eager" else FUSED)]
SHAPES = [(70, 2), (3, 5, 82), (1, 128), (2, 1026)]  # one, odd, a block, past a block


def form(kind, impl):
    return lambda x: activation(x, kind, impl=impl)


def torchs_own(kind):
    """Also what a plain model writes."""
    return {
        "swiglu": lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_erf": F.gelu,
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square(),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchs_activation(kind):
    x = torch.randn(9, 30, dtype=torch.float64)
    torch.testing.assert_close(activation(x, kind, impl="reference"), torchs_own(kind)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "impl"), EVERY)
def test_error_is_within_budget(kind, dtype, impl):
    if impl == "native" and dtype == torch.float16:
        pytest.raises(ValueError, activation, torch.zeros(2, 2, dtype=dtype), kind, impl=impl)
        return
    for shape in SHAPES:
        own = torchs_own(kind) if impl == "eager" else None
        check(form(kind, impl), form(kind, "reference"), [3 * torch.randn(shape).to(dtype)], own)


@pytest.mark.parametrize("impl", ["reference", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_differences(kind, impl):
    assert torch.autograd.gradcheck(form(kind, impl), torch.randn(3, 8, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(("kind", "impl"), EVERY)
def test_strides_threads_and_blocks_do_not_matter(kind, impl):
    x, upstream = torch.randn(6, 40, 150), [torch.randn(6, 40, 75 if kind == "swiglu" else 150)]
    first = run(form(kind, impl), [x], upstream)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    for mine, other in zip(run(form(kind, impl), [strided], upstream), first, strict=True):
        if impl == "native":
            assert_bitwise("strided", mine, other)
        torch.testing.assert_close(mine, other)
    try:
        torch.set_num_threads(2 if impl == "native" else 1)  # torch's own blocks follow the number of threads
        for mine, other in zip(run(form(kind, impl), [x], upstream), first, strict=True):
            assert_bitwise("two threads", mine, other)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("kind", FUSED)
def test_a_nan_shows_and_extremes_stay_finite(kind, impl):
    x = torch.tensor([[float("nan"), 0.0, -200.0, 200.0]]).repeat(1, 2).requires_grad_()
    y = activation(x, kind, impl=impl)
    y.sum().backward()
    assert y[0, 0].isnan() and x.grad[0, 0].isnan()
    assert y[0, 1:4].isfinite().all() and x.grad[0, 1:4].isfinite().all()


def test_only_the_input_is_kept_for_the_backward():
    kept = []
    x = torch.randn(4, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        activation(x, "swiglu", impl=FORMS[-1])
    assert len(kept) == (1 if FORMS[-1] == "native" else len(kept))
    assert FORMS[-1] == "eager" or kept[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: activation(torch.zeros(2, 3), "swiglu"), r"want x \[..., 2 F\], got \[2, 3\]"),
        (
            lambda: activation(torch.zeros(2, 3), "silu"),
            r"want kind in \['gelu', 'gelu_erf', 'relu', 'relu2', 'swiglu'\], got 'silu'",
        ),
        (lambda: activation(torch.zeros(2, 2).int(), "gelu"), "want a floating x"),
        (lambda: activation(torch.zeros(2, 2), "gelu", impl="liger"), "want impl in"),
        (lambda: activation(torch.zeros(2, 2), "relu", impl="native"), "want impl in .* for relu, got 'native'"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^mlp: {words}"):
        call()


@pytest.mark.skipif(FORMS == ["eager"], reason="no C compiler")
def test_the_operator_keeps_its_promises_to_torch():
    from hotplate.kernels.mlp.native import operator

    torch.library.opcheck(operator, (torch.randn(3, 8, requires_grad=True), "swiglu"))
