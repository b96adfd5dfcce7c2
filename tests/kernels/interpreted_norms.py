"""The norms' Triton kernels in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import norms
import pytest
import torch
from numerics import assert_bitwise, run

from hotplate.kernels.layernorm import add_layernorm, layernorm
from hotplate.kernels.norm import streaming
from hotplate.kernels.rmsnorm import add_rmsnorm, rmsnorm

pytestmark = pytest.mark.usefixtures("poisoned_memory")
ALL = [(rmsnorm, 1, 1), (add_rmsnorm, 2, 1), (layernorm, 1, 2), (add_layernorm, 2, 2)]
IDS = [norm.__name__ for norm, _, _ in ALL]


@pytest.mark.parametrize(("norm", "rows", "vectors"), ALL, ids=IDS)
def test_error_is_within_budget(norm, rows, vectors):
    for shape, dtype in (((1, 300), torch.float32), ((5, 7, 41), torch.bfloat16), ((9, 130), torch.float16)):
        norms.assert_within_budget(norm, norms.inputs(shape, rows, vectors, dtype), "triton")


@pytest.mark.parametrize(("norm", "rows", "vectors"), ALL, ids=IDS)
def test_stripes_of_several_steps_join_and_runs_repeat(monkeypatch, norm, rows, vectors):
    monkeypatch.setattr(streaming, "STRIPES", 3)
    monkeypatch.setattr(streaming, "STEP_VALUES", 32)
    arguments = norms.inputs((17, 16), rows, vectors)
    norms.assert_within_budget(norm, arguments, "triton")
    norms.assert_runs_repeat(norm, arguments, "triton")


def test_one_feature_the_sum_alone_and_no_row():
    norms.assert_one_feature(add_layernorm, norms.inputs((9, 1), 2, 2), "triton")
    norms.assert_the_sum_alone_has_its_gradient(add_rmsnorm, norms.inputs((4, 9), 2, 1), "triton")
    assert rmsnorm(torch.zeros(0, 9), torch.ones(9), impl="triton").shape == (0, 9)


def test_a_weight_s_dtype_is_not_the_bias_s():
    x, weight, bias = (leaf.requires_grad_() for leaf in norms.inputs((9, 20), 1, 2))
    narrow = weight.detach().half().requires_grad_()
    upstream = torch.randn(9, 20)
    want = torch.autograd.grad(layernorm(x, narrow.float(), bias, impl="triton"), bias, upstream)[0]
    of_weight, of_bias = torch.autograd.grad(layernorm(x, narrow, bias, impl="triton"), (narrow, bias), upstream)
    assert of_weight.dtype == torch.float16 and of_bias.dtype == torch.float32
    assert_bitwise("bias", of_bias, want)


def test_a_nan_shows_in_its_row_alone():
    x, weight = norms.inputs((4, 9), 1, 1)
    x[1, 3] = torch.nan
    y = rmsnorm(x, weight, impl="triton")
    assert y[1].isnan().all() and y[[0, 2, 3]].isfinite().all()


def test_wide_rows_are_refused():
    with pytest.raises(ValueError, match="rmsnorm: want D <= 8192 with impl='triton', got 8193"):
        rmsnorm(torch.zeros(1, 8193), torch.ones(8193), impl="triton")


def test_the_operator_keeps_its_promises_to_torch():
    arguments = [x.requires_grad_() for x in norms.inputs((3, 8), 2, 2)]
    torch.library.opcheck(streaming.operator, (*arguments, 1e-5), test_utils=("test_schema",))
    first, second = (run(norms.form(add_layernorm, "triton"), arguments, [torch.ones(3, 8)] * 2) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_bitwise("again", a, b)
