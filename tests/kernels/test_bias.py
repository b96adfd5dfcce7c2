import pytest
import torch

from hotplate.kernels import native
from hotplate.kernels.attention import self_attention
from hotplate.kernels.attention.problem import Call
from hotplate.kernels.bias import received
from hotplate.kernels.lstm import lstm
from hotplate.kernels.lstm_dense import lstm_dense
from hotplate.kernels.lstm_diagonal import lstm_diagonal
from hotplate.kernels.mlp import activation
from hotplate.kernels.qlstm import qlstm

FORMS = ("eager", "reference", *(["native"] if native.why_not("qlstm") is None else []))
OPS = {  # the shape of x, how many of its last axes the bias has, and the op
    "mlp": ((2, 3, 8), 1, lambda x, bias, impl: activation(x, "gelu", bias, impl=impl)),
    "attention": ((2, 6, 4, 8), 2, lambda x, bias, impl: self_attention(x, 2, bias=bias, impl=impl)),
    "qlstm": ((2, 3, 4, 5), 2, lambda x, bias, impl: qlstm(x, bias=bias, impl=impl)[0]),
    "qlstm, coupled": ((2, 3, 3, 5), 2, lambda x, bias, impl: qlstm(x, bias=bias, coupled=True, impl=impl)[0]),
    "lstm": ((2, 3, 4, 2, 5), 3, lambda x, bias, impl: lstm(x, torch.ones(4, 2, 5, 5), bias=bias, impl=impl)[0]),
    "lstm_dense": ((2, 3, 4, 5), 2, lambda x, bias, impl: lstm_dense(x, torch.ones(4, 5, 5), bias=bias, impl=impl)[0]),
    "lstm_diagonal": (
        (2, 3, 4, 5),
        2,
        lambda x, bias, impl: lstm_diagonal(x, torch.ones(4, 5), bias=bias, impl=impl)[0],
    ),
}


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("name", OPS)
def test_it_gets_the_gradient_that_the_projection_would_give_it(name, impl):
    shape, axes, op = OPS[name]
    rows, bias = torch.randn(shape), torch.randn(shape[-axes:], requires_grad=True)
    found = []
    for apart in (False, True):
        y = op(rows + (bias.detach() if apart else bias), bias if apart else None, impl)
        found += [y, *torch.autograd.grad(y.square().sum(), bias)]
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


def test_attention_knows_that_a_bias_alone_has_a_gradient():
    """Backends without a backward pass are not for it."""
    q, k = torch.ones(1, 2, 2, 8), torch.ones(1, 2, 1, 8)
    options = {"documents": None, "scale": 1.0, "window": None, "softcap": None, "lse": False}
    biases = [torch.zeros(4, 8, requires_grad=wanted) for wanted in (True, False)]
    assert [Call(q=q, k=k, v=k, bias=bias, **options).problem().gradient for bias in biases] == [True, False]


@pytest.mark.parametrize("name", OPS)
def test_one_that_does_not_fit_is_refused(name):
    shape, axes, op = OPS[name]
    fits = list(shape[-axes:])
    with pytest.raises(ValueError, match=rf"want bias None or float \[{fits[0]}.*\] on cpu, got torch.float32 \[1, "):
        op(torch.randn(shape), torch.zeros(1, *fits), "auto")
    with pytest.raises(ValueError, match="want bias None or float .*, got torch.int64"):
        op(torch.randn(shape), torch.zeros(fits, dtype=torch.int64), "auto")


def test_x_is_a_view_and_the_gradient_has_the_dtype_of_the_bias():
    x, bias = torch.randn(2, 3, 4, requires_grad=True), torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    y = received(x, bias)
    assert y.data_ptr() == x.data_ptr() and torch.equal(y, x)
    upstream = torch.randn(2, 3, 4)
    of_x, of_bias = torch.autograd.grad(y, (x, bias), upstream)
    assert torch.equal(of_x, upstream) and of_bias.dtype == torch.float64
    torch.testing.assert_close(of_bias, upstream.sum(0).double())
