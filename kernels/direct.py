"""Calls of registered operators without torch's dispatcher, whose Python takes longer than a small operator's work.

Where something looks at operators (torch.compile, fake tensors and other modes, function transforms, the profiler), the
call goes through the dispatcher, as it is registered for; else the operator's body and derivative run at once.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def _watched() -> bool:
    """Whether something beside the caller has to see which operators run."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._autograd._profiler_enabled()
    )


def direct(operator: Callable[..., Any]) -> Callable[..., Any]:
    """A torch.library.custom_op or triton_op as a function of its arguments by place, with the gradients that it is
    registered with. What has none is refused by the dispatcher, as ever, where one is asked for."""
    return operator if torch.compiler.is_compiling() else _direct(operator)


@cache
def _direct(operator: Any) -> Callable[..., Any]:
    body, setup, derivative = operator._init_fn, operator._setup_context_fn, operator._backward_fn

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            result = body(*arguments)
            setup(ctx, inputs=arguments, output=result)
            return result

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            found = derivative(ctx, *gradients)
            # For a list of tensors, which have no gradients here, the dispatcher wants a list.
            return tuple(None if isinstance(g, list) else g for g in found) if isinstance(found, tuple) else found

    def call(*arguments: Any) -> Any:
        differentiated = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        if _watched() or (differentiated and derivative is None):
            return operator(*arguments)
        return Direct.apply(*arguments) if differentiated else body(*arguments)

    return call
