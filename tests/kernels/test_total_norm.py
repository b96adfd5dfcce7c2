import pytest
import torch

from hotplate.kernels import native
from hotplate.kernels.total_norm import total_norm

pytestmark = pytest.mark.usefixtures("poisoned_memory")
FORMS = ["eager", *(["native"] if native.why_not("total_norm") is None else [])]
# One element, a lane more than a block, a matrix, nothing, a scalar.
SHAPES = [(1,), ((1 << 14) + 33,), (300, 700), (0, 5), ()]


def tensors(scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18])  # squares beyond the range of fp32
@pytest.mark.parametrize("impl", ["auto", *FORMS])
def test_sums_are_fp64(impl, scale):
    found = total_norm(tensors(scale), impl=impl)
    assert found.shape == () and found.dtype == torch.float64
    flat = torch.cat([x.double().flatten() for x in tensors(scale)])
    torch.testing.assert_close(found, flat.norm(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total_norm(tensors(scale), impl="reference"), flat.norm(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("impl", ["auto", *FORMS])
def test_bf16_is_converted_as_it_is_read(impl):
    narrow = tensors(dtype=torch.bfloat16)
    truth = torch.cat([x.double().flatten() for x in narrow]).norm()
    torch.testing.assert_close(total_norm(narrow, impl=impl), truth, rtol=1e-13, atol=0)


@pytest.mark.parametrize("impl", FORMS)
def test_every_element_counts_once_wherever_it_lies(impl):
    for shape in [(1 << 14) - 1, 1 << 14, 2 * (1 << 14) + 31]:
        for at in (0, 31, shape - 32, shape - 1):
            x = torch.zeros(shape)
            x[at] = 3.0
            assert total_norm([torch.tensor(4.0), x], impl=impl) == 5.0


@pytest.mark.parametrize("impl", FORMS)
def test_strides_do_not_matter(impl):
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    wide = torch.randn(40, 60, generator=torch.Generator().manual_seed(2))
    strided = total_norm([x.T, wide[:, ::2]], impl=impl)
    torch.testing.assert_close(strided, total_norm([x, wide[:, ::2].contiguous()], impl=impl), rtol=1e-14, atol=0)


@pytest.mark.skipif("native" not in FORMS, reason="no C compiler")
def test_threads_do_not_change_a_bit():
    one = total_norm(tensors(), impl="native")
    try:
        torch.set_num_threads(2)
        assert torch.equal(total_norm(tensors(), impl="native"), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("impl", ["reference", *FORMS])
def test_what_is_not_finite_shows(impl, bad):
    x = torch.ones(5000)
    x[4321] = bad
    assert not total_norm([torch.ones(3), x], impl=impl).isfinite()


def test_nothing_has_norm_zero_and_fp16_takes_torchs_form():
    assert total_norm([torch.empty(0), torch.empty(3, 0)]) == 0
    half = [torch.full((100,), 0.5, dtype=torch.float16)]
    assert total_norm(half) == 5.0


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ([], {}, "want tensors, got none"),
        ([torch.ones(2), torch.ones(2).double()], {}, "want torch.float32 on cpu throughout, got torch.float64"),
        ([torch.ones(2, dtype=torch.int64)], {"impl": "eager"}, "want a floating tensor, got torch.int64"),
        ([torch.ones(2).half()], {"impl": "native"}, "want a CPU tensor of float32 or bfloat16 with impl='native'"),
        ([torch.ones(2)], {"impl": "fast"}, "want impl in"),
        ([torch.ones(2)], {"impl": "triton"}, "want impl in"),
    ],
)
def test_bad_input_is_refused(arguments, options, words):
    with pytest.raises(ValueError, match=rf"^total_norm: {words}"):
        total_norm(arguments, **options)
