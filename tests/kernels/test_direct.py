"""Operators that are called without the dispatcher: the same numbers and gradients; whoever looks still sees them."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from hotplate.kernels.direct import direct
from hotplate.kernels.qlstm import registered


@pytest.fixture
def arguments():
    gates, resets = torch.randn(2, 5, 4, 8, requires_grad=True), torch.zeros(2, 5, dtype=torch.bool)
    return gates, None, torch.randn(2, 8, requires_grad=True), resets, 1.0, "eager", True


class Names(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        seen.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


seen: list[str] = []


def gradients(operator, arguments):
    h, c_last, _ = operator(*arguments)
    return [h, c_last, *torch.autograd.grad(h.square().sum() + c_last.sum(), arguments[:3:2])]


def test_results_and_gradients_are_the_dispatcher_s(arguments):
    for mine, other in zip(
        gradients(direct(registered.forward), arguments), gradients(registered.forward, arguments), strict=True
    ):
        assert torch.equal(mine, other)
    with torch.no_grad():
        assert all(x.grad_fn is None for x in direct(registered.forward)(*arguments))
    with torch.inference_mode():
        assert direct(registered.forward)(*arguments)[0].is_inference()


def test_a_mode_and_the_profiler_see_them(arguments):
    seen.clear()
    with Names():
        gradients(direct(registered.forward), arguments)
    assert {"hotplate.qlstm", "hotplate.qlstm_backward"} <= set(seen)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        gradients(direct(registered.forward), arguments)
    names = {event.name for event in profiled.events()}
    assert {"hotplate::qlstm", "hotplate::qlstm_backward"} <= names


def test_with_nobody_looking_the_dispatcher_is_not_asked(arguments):
    """It would have made the node of the graph."""
    assert type(direct(registered.forward)(*arguments)[0].grad_fn).__name__ == "DirectBackward"
    assert type(registered.forward(*arguments)[0].grad_fn).__name__.startswith("Generated")


def test_a_second_derivative_is_refused(arguments):
    h, *_ = direct(registered.forward)(*arguments)
    (first,) = torch.autograd.grad(h.sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        first.sum().backward()


def test_transforms_are_left_to_the_dispatcher(arguments):
    gates, *others = arguments
    with pytest.raises(RuntimeError, match=r"vmap|functorch|not.*support"):
        torch.func.grad(lambda g: direct(registered.forward)(g, *others)[0].sum())(gates)
