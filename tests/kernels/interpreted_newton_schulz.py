"""Newton-Schulz's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from numerics import assert_bitwise, assert_within_budget

from hotplate.kernels.newton_schulz import eager, launches, newton_schulz
from hotplate.kernels.newton_schulz.launches import Configuration

pytestmark = pytest.mark.usefixtures("poisoned_memory")
# One number, odd sides, tall and wide, whole tiles, one past a tile, stacks, three tiles by five.
SHAPES = [(1, 1), (1, 9), (9, 1), (33, 17), (32, 64), (129, 130), (3, 20, 50), (2, 2, 30, 12), (65, 129)]


def orthogonal(g, steps=5):
    return newton_schulz(g, steps, impl="triton")


@pytest.fixture
def small_tiles(monkeypatch):
    """Of 16, so that few numbers are many tiles."""
    cut = Configuration(tile=16, step=16, warps=1, stages=1)
    monkeypatch.setattr(launches, "configuration", lambda *problem: cut)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_within_budget(shape, dtype):
    g = torch.randn(shape).to(dtype)
    truth = newton_schulz(g.double(), impl="reference")
    assert_within_budget("x", orthogonal(g), newton_schulz(g, impl="reference"), truth)


@pytest.mark.parametrize("shape", [(2, 60, 81), (2, 81, 60), (80, 80)], ids=str)
def test_many_tiles_even_and_odd(small_tiles, shape):
    g = torch.randn(shape)
    truth = newton_schulz(g.double(), impl="reference")
    assert_within_budget("x", orthogonal(g), newton_schulz(g, impl="reference"), truth)
    truth = newton_schulz(g.double(), 1, impl="reference")
    assert_within_budget("one step", orthogonal(g, 1), newton_schulz(g, 1, impl="reference"), truth)


@pytest.mark.parametrize("shape", [(40, 70), (70, 40)], ids=str)
def test_products_of_16_bits_are_no_worse_than_torchs(monkeypatch, small_tiles, shape):
    """As on a GPU, where they are bfloat16, which the interpreter cannot multiply."""
    for module in (launches, eager):
        monkeypatch.setattr(module, "work_dtype", lambda g: torch.float16)
    g = torch.randn(shape)
    assert_within_budget("x", orthogonal(g), newton_schulz(g), newton_schulz(g.double(), impl="reference"))


def test_a_stack_is_each_matrix_alone_and_runs_repeat(small_tiles):
    g = torch.randn(3, 20, 50)
    before, found = g.clone(), orthogonal(g)
    assert_bitwise("again", orthogonal(g), found)
    assert_bitwise("g", g, before)
    for matrix, alone in zip(found, g, strict=True):
        assert_bitwise("alone", orthogonal(alone), matrix)


def test_strides_do_not_matter_and_results_are_contiguous():
    g = torch.randn(3, 12, 8, 5).permute(3, 0, 2, 1)
    found = orthogonal(g)
    assert found.is_contiguous()
    assert_bitwise("x", found, orthogonal(g.contiguous()))


def test_zero_stays_zero_a_nan_stays_in_its_matrix_and_nothing_is_no_work():
    g = torch.randn(3, 20, 40)
    g[1] = 0
    g[2, 3, 4] = torch.nan
    found = orthogonal(g)
    assert found[0].isfinite().all() and (found[1] == 0).all() and found[2].isnan().all()
    assert orthogonal(torch.zeros(0, 4, 5)).shape == (0, 4, 5) and orthogonal(torch.zeros(4, 0)).shape == (4, 0)


def test_the_operator_keeps_its_promises_to_torch():
    torch.library.opcheck(launches.operator, (torch.randn(3, 8), 2), test_utils=("test_schema",))


def test_float64_is_refused():
    with pytest.raises(ValueError, match="^newton_schulz: want a CUDA tensor of float32, bfloat16 or float16"):
        orthogonal(torch.zeros(3, 3, dtype=torch.float64))
