import pytest
import torch
from numerics import assert_bitwise, assert_within_budget

from hotplate.kernels.newton_schulz import eager, newton_schulz

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHAPES = [(1, 1), (1, 9), (9, 1), (33, 17), (17, 33), (40, 40), (3, 20, 50), (2, 2, 30, 12)]
# A CPU computes the halves of symmetric products: whole blocks, and past them; sums of several chains.
LARGE = [(256, 256), (2, 300, 257), (259, 1000), (512, 512)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
def test_error_is_within_budget(shape, dtype):
    g = torch.randn(shape).to(dtype)
    truth = newton_schulz(g.double(), impl="reference")
    assert_within_budget("x", newton_schulz(g), newton_schulz(g, impl="reference"), truth)


@pytest.mark.parametrize("shape", [*SHAPES, *LARGE[1:3]], ids=str)
def test_eager_is_the_definition_in_float64(shape):
    g = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(g), newton_schulz(g, impl="reference"), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("impl", ["eager", "reference"])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)], ids=str)
def test_singular_values_come_near_one_and_vectors_stay(shape, impl):
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    s = torch.logspace(0, -1, min(shape), dtype=torch.float64)
    x = newton_schulz(u * s @ v, impl=impl)
    diagonal = u.T @ x @ v.T
    values = diagonal.diagonal()
    assert (values > 0.6).all() and (values < 1.3).all()
    assert (diagonal - values.diag()).abs().max() < 1e-10


@pytest.mark.parametrize("impl", ["eager", "reference"])
def test_a_stack_is_each_matrix_alone(impl):
    for shape in ((3, 10, 20), (2, 260, 256)):
        g = torch.randn(shape, dtype=torch.float64)
        for matrix, alone in zip(newton_schulz(g, impl=impl), g, strict=True):
            torch.testing.assert_close(matrix, newton_schulz(alone, impl=impl), rtol=1e-11, atol=1e-12)


def test_scale_of_the_input_does_not_matter_and_zero_stays_zero():
    g = torch.randn(8, 12, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(1e4 * g), newton_schulz(g), rtol=1e-5, atol=1e-5)
    assert_bitwise("zero", newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_runs_repeat_bitwise_and_leave_the_input_alone():
    for shape in ((65, 33), (2, 257, 300)):
        g = torch.randn(shape)
        before = g.clone()
        assert_bitwise("x", newton_schulz(g), newton_schulz(g))
        assert_bitwise("g", g, before)


def test_the_norm_of_many_numbers_is_exact():
    g = torch.randn(512, 2048)
    truth = g.double().norm().item()
    assert abs(eager.norms(g).item() / truth - 1) <= torch.finfo(torch.float32).eps


def test_strides_do_not_matter():
    g = torch.randn(3, 12, 8, 5)
    torch.testing.assert_close(
        newton_schulz(g.permute(3, 0, 2, 1)),
        newton_schulz(g.permute(3, 0, 2, 1).contiguous()),
        rtol=1e-4,
        atol=1e-5,
    )


def test_more_steps_are_more_steps():
    g = torch.randn(6, 6, dtype=torch.float64)
    twice = newton_schulz(g, 2)
    torch.testing.assert_close(twice, newton_schulz(g, 2, impl="reference"))
    assert not torch.allclose(twice, newton_schulz(g, 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: newton_schulz(torch.zeros(3)), r"want g \[..., M, N\], got \[3\]"),
        (lambda: newton_schulz(torch.zeros(3, 3), 0), "want steps >= 1, got 0"),
        (lambda: newton_schulz(torch.zeros(3, 3).int()), "floating g"),
        (
            lambda: newton_schulz(torch.zeros(3, 3), impl="svd"),
            r"want impl in \['auto', 'eager', 'reference', 'triton'\]",
        ),
        (lambda: newton_schulz(torch.zeros(3, 3), impl="triton"), "want a CUDA tensor .* got torch.float32 on cpu"),
    ],
)
def test_a_wrong_call_says_what_is_wanted(call, words):
    with pytest.raises(ValueError, match=f"^newton_schulz: .*{words}"):
        call()
