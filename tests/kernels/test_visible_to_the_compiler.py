"""torch.compile sees the launches inside the Triton forms of norms, MLP, rotary and Newton-Schulz: it can fuse around
them."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from hotplate.kernels.launch import constant

pytest.importorskip("triton")


class Traced(Exception):
    """The graph is known: nothing needs to run, which it could not without a GPU."""


def graph_of(call, *arguments):
    """The code of the forward graph that a compiler would get."""
    seen = []

    def compiler(module, inputs):
        seen.append(module.code)
        raise Traced

    with pytest.raises(Exception, match="Traced"):
        torch.compile(call, backend=aot_autograd(fw_compiler=compiler), fullgraph=True)(*arguments)
    return seen[0]


def norm(x):
    from hotplate.kernels.norm.streaming import operator

    return 2 * operator(x, x, torch.ones(64), None, 1e-5)[0]


def mlp(x):
    from hotplate.kernels.mlp.streaming import operator

    return operator(2 * x, "swiglu", torch.ones(64))


def rotary(x):
    from hotplate.kernels.rotary.streaming import operator

    q, k, v = operator(x.view(1, 4, 4, 16), 2, None, None, torch.ones(16), torch.ones(16), 1e-5)
    return 2 * q + k + v


def newton_schulz(x):
    from hotplate.kernels.newton_schulz.launches import operator

    return operator(2 * x.detach(), 5)


@pytest.mark.parametrize("call", [norm, mlp, rotary, newton_schulz], ids=lambda call: call.__name__)
def test_a_launch_is_a_node_of_the_graph(call):
    code = graph_of(call, torch.randn(4, 64, requires_grad=True))
    assert "triton_kernel_wrapper_functional" in code and "torch.ops.hotplate" not in code
    assert "aten.mul" in code


def test_constants_are_marked_as_torch_marks_them():
    ours, theirs = constant(lambda: 1), torch.compiler.assume_constant_result(lambda: 1)
    assert vars(ours) == vars(theirs) != {}
