import pytest
import torch
import torch.nn.functional as F
from numerics import assert_bitwise, check, run
from processors import OLDER, built_for, needs_older
from torch.utils.flop_counter import FlopCounterMode

from hotplate.kernels import native
from hotplate.kernels.linear import linear
from hotplate.kernels.linear.native import operator
from hotplate.kernels.product import choice, multiply
from hotplate.kernels.product import native as products

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NATIVE = native.why_not("product") is None
FORMS = ["eager", *(["native"] if NATIVE else [])]
needs_c = pytest.mark.skipif(not NATIVE, reason="no C compiler")
HALVES = NATIVE and bool(products.takes_halves())
halves = pytest.mark.skipif(not HALVES, reason="no AVX512_BF16")
DTYPES = [torch.float32, *([torch.bfloat16] if HALVES else [])]
# (rows, inputs, outputs): one, odd, a tile of 8 x 32 (6 x 16 without AVX-512) and past it, past a chain of 512 and a
# block of 128 x 1024 x 1024 (96 x 512 x 512)
SHAPES = [(1, 1, 1), (3, 5, 7), (8, 16, 32), (9, 17, 33), (193, 513, 70), (40, 600, 1025), (7, 1030, 31)]


def form(impl):
    return lambda x, weight, bias: linear(x, weight, bias, impl=impl)


def operands(M, I, O):  # noqa: E741
    return [torch.randn(M, I), torch.randn(O, I) / I**0.5, torch.randn(O)]


def test_it_is_torchs_projection():
    x, weight, bias = (t.double() for t in operands(5, 6, 4))
    torch.testing.assert_close(linear(x, weight, bias, impl="reference"), F.linear(x, weight, bias))
    assert torch.autograd.gradcheck(form("reference"), [t.requires_grad_() for t in (x, weight, bias)])


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_budget(shape, impl):
    check(form(impl), form("reference"), lambda: operands(*shape), F.linear)


@needs_c
@needs_older
@pytest.mark.parametrize("processor", OLDER[:-1])  # the last has no fused products: torch's there would err more, too
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_budget_on_older_processors(monkeypatch, processor, shape):
    """Other tiles, other blocks."""
    monkeypatch.setattr(products, "panels", products.Panels())
    with built_for(processor, products._library):
        check(form("native"), form("reference"), lambda: operands(*shape), F.linear)


@halves
@pytest.mark.parametrize("shape", [*SHAPES, (5, 4099, 33), (4100, 6, 33)])
def test_error_of_bf16_is_within_budget(shape):
    check(form("native"), form("reference"), lambda: [t.bfloat16() for t in operands(*shape)], F.linear)


@needs_c
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_strides_and_threads_do_not_matter(shape, dtype):
    x, weight, bias = (t.to(dtype) for t in operands(*shape))
    upstream = [torch.randn(shape[0], shape[2]).to(dtype)]
    first = run(form("native"), [x, weight, bias], upstream)
    wide = torch.randn(shape[0], 2 * shape[1]).to(dtype)
    wide[:, ::2] = x
    others = {
        "columns": (x.T.contiguous().T, weight.T.contiguous().T, bias, upstream),
        "every second": (wide[:, ::2], weight, bias, upstream),
        "gradient": (x, weight, bias, [upstream[0].T.contiguous().T]),
    }
    for name, (*inputs, arriving) in others.items():
        leaves = [t.detach().requires_grad_() for t in inputs]
        y = form("native")(*leaves)
        for mine, other in zip([y, *torch.autograd.grad(y, leaves, arriving)][:3], first[:3], strict=True):
            assert_bitwise(name, mine, other)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for mine, other in zip(run(form("native"), [x, weight, bias], upstream)[:3], first[:3], strict=True):
                assert_bitwise(f"{threads} threads", mine, other)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("impl", FORMS)
def test_any_leading_axes_and_none_of_a_bias(impl):
    weight = torch.randn(6, 5)
    for shape in ((5,), (0, 5), (2, 3, 5), (2, 0, 4, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(linear(x, weight, impl=impl), F.linear(x, weight))
    torch.testing.assert_close(linear(torch.empty(3, 0), torch.empty(2, 0), torch.ones(2), impl=impl), torch.ones(3, 2))


@pytest.mark.parametrize("impl", FORMS)
def test_only_wanted_gradients_are_computed(impl):
    x, weight, bias = operands(4, 5, 6)
    for wanted in range(3):
        leaves = [t.clone().requires_grad_(n == wanted) for n, t in enumerate((x, weight, bias))]
        form(impl)(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [n == wanted for n in range(3)]


@pytest.mark.parametrize("impl", FORMS)
def test_a_nan_shows_and_stays_in_its_row(impl):
    x, weight, _ = operands(12, 40, 50)
    x[3, 7] = torch.nan
    y = linear(x, weight, impl=impl)
    assert y[3].isnan().all() and y[[n for n in range(12) if n != 3]].isfinite().all()


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 7), (70, 520, 90), (9, 2501, 40)])
def test_products_are_written_or_added(shape, dtype, impl):
    M, K, N = shape
    left, right, out = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype), torch.randn(M, 2 * N)[:, :N]
    product = left.double() @ right.double()
    for add in (True, False):
        truth = product + out.double() if add else product
        assert multiply(left, right, out, add=add, impl=impl) is out
        assert (out.double() - truth).abs().max() <= 1e-7 * truth.abs().max() * K**0.5


@needs_c
def test_auto_is_c_where_it_was_measured_to_pay(monkeypatch):
    ran = []
    monkeypatch.setattr(products, "multiply", lambda *a, **k: ran.append("native") or a[2])
    monkeypatch.setattr(choice, "_pays", lambda: True)
    side = round(choice.SMALLEST ** (1 / 3)) + 1
    large, small = torch.zeros(side, side), torch.zeros(8, 8)
    multiply(large, large, torch.empty_like(large))
    assert ran == ["native"]
    multiply(small, small, torch.empty_like(small))
    multiply(large.double(), large.double(), torch.empty_like(large, dtype=torch.double))
    monkeypatch.setattr(choice, "_pays", lambda: False)
    multiply(large, large, torch.empty_like(large))
    assert ran == ["native"]
    monkeypatch.setattr(choice, "_pays", lambda: True)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(large, large).dtype == torch.bfloat16


ZEROS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear(ZEROS, ZEROS.T), r"linear: want x \[..., I\] and weight \[O, I\], got \[2, 3\] and \[3, 2\]"),
        (lambda: linear(ZEROS, ZEROS, torch.zeros(3)), r"linear: want bias \[2\] or None, got \[3\]"),
        (lambda: linear(ZEROS.int(), ZEROS), "linear: want a floating x"),
        (lambda: linear(ZEROS, ZEROS, impl="triton"), "linear: want impl in"),
        (lambda: linear(ZEROS.double(), ZEROS.double(), impl="native"), "linear: want a CPU tensor of float32"),
        (lambda: linear(ZEROS.half(), ZEROS.half(), impl="native"), "linear: want a CPU tensor of float32"),
        (lambda: multiply(ZEROS, ZEROS, ZEROS), r"multiply: want left \[M, K\] and right \[K, N\], got \[2, 3\]"),
        (lambda: multiply(ZEROS, ZEROS.T, ZEROS), r"multiply: want out \[2, 2\] with contiguous rows"),
        (lambda: multiply(ZEROS, ZEROS.T, torch.zeros(2, 2).half()), "multiply: want out of torch.float32, got"),
        (
            lambda: multiply(*[ZEROS.half().T @ ZEROS.half()] * 2, torch.zeros(3, 3).half(), add=True),
            "multiply: want out",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        call()


@needs_c
def test_bf16_is_refused_where_the_processor_cannot(monkeypatch):
    monkeypatch.setattr(products, "takes_halves", lambda: False)
    with pytest.raises(ValueError, match="linear: want a CPU tensor of float32, or of bfloat16 on a processor that"):
        linear(ZEROS.bfloat16(), ZEROS.bfloat16(), impl="native")
    left = torch.randn(4, 6).bfloat16()
    torch.testing.assert_close(multiply(left, left.T, torch.empty(4, 4)), left.float() @ left.float().T)


@needs_c
def test_operands_of_two_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"linear: want torch.float32 on cpu throughout, got torch.float64 on cpu"):
        linear(ZEROS, ZEROS.double(), impl="native")


@needs_c
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator_keeps_its_promises_to_torch(dtype):
    x, weight, bias = (t.to(dtype).requires_grad_() for t in operands(3, 8, 5))
    torch.library.opcheck(operator, (x, weight, bias))
    torch.library.opcheck(operator, (x, weight, None))


@needs_c
def test_torch_counts_its_flops():
    x, weight, bias = (t.requires_grad_() for t in operands(3, 8, 5))
    for impl in ("eager", "native"):
        with FlopCounterMode(display=False) as counter:
            linear(x, weight, bias, impl=impl).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * 3 * 8 * 5
