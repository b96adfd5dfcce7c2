"""The MLP's Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from numerics import assert_bitwise, check, run

from hotplate.kernels.mlp import activation, streaming
from hotplate.kernels.mlp.op import FUSED

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def form(kind, impl):
    return lambda x: activation(x, kind, impl=impl)


@pytest.mark.parametrize("kind", FUSED)
def test_error_is_within_budget(monkeypatch, kind):
    monkeypatch.setattr(streaming, "MOST_FEATURES", 32)
    for shape, dtype in (((70, 2), torch.float32), ((3, 5, 82), torch.bfloat16), ((2, 66), torch.float16)):
        check(form(kind, "triton"), form(kind, "reference"), [3 * torch.randn(shape).to(dtype)])


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("rows", [(1,), (9,), (3, 5)], ids=str)
def test_the_gradient_of_a_bias_is_the_sum_over_rows(monkeypatch, kind, rows):
    """A few features of a program, 3 or 4 stripes of rows, or 1; the last block of features is not full."""
    monkeypatch.setattr(streaming, "MOST_FEATURES", 32)
    monkeypatch.setattr(streaming, "PROGRAMS", 8)
    x, bias = 3 * torch.randn(*rows, 84), torch.randn(84)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype), bias.to(dtype)]
        check(*(lambda x, b, impl=impl: activation(x, kind, b, impl=impl) for impl in ("triton", "reference")), inputs)


@pytest.mark.parametrize("kind", FUSED)
def test_a_nan_shows_and_runs_repeat(kind):
    x = torch.randn(3, 20)
    x[1, 2] = torch.nan
    assert activation(x, kind, impl="triton").isnan().sum() == 1
    x[1, 2] = 0
    upstream = [torch.randn(3, 10 if kind == "swiglu" else 20)]
    for a, b in zip(*(run(form(kind, "triton"), [x], upstream) for _ in range(2)), strict=True):
        assert_bitwise("again", a, b)


def test_nothing_is_no_work_and_the_operator_keeps_its_promises_to_torch():
    assert activation(torch.zeros(0, 8), "swiglu", impl="triton").shape == (0, 4)
    torch.library.opcheck(
        streaming.operator,
        (torch.randn(3, 8, requires_grad=True), "gelu", torch.randn(8, requires_grad=True)),
        test_utils=("test_schema",),
    )
