"""Makes torch operators, with fake results and a derivative, of the forms that a recurrence comes in.

A recurrence is (gates [B, T, 4, H, K], recurrent [4, R, K, K], h0, c0, resets, forget_offset) -> (h, h_last, c_last);
rooms lstm and lstm_dense say what it computes. Torch sees one operator per room, so torch.compile, autocast and
opcheck treat every form alike.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.bias import received, room_for
from hotplate.kernels.checks import state_dtype
from hotplate.kernels.direct import direct

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
PIECES = 8  # of the sum over rows and steps in the gradient of R; fp32 and fp64 only, 16 bits would round each


@dataclass(frozen=True)
class Form:
    """One way to run a recurrence.

    forward(gates, recurrent, h0, c0, resets, forget_offset, keep) -> h, h_last, c_last, and two tensors in the state
    dtype for the backward, of the shapes kept(B, T, H, K); both are empty unless keep.
    backward(dh, dh_last, dc_last, h, first, second, gates, recurrent, h0, c0, resets, forget_offset) -> dpre
    [B, T, 4, H, K], drecurrent, dh0, dc0; gates is None unless needs_gates, dh_last and dc_last are None for zeros.
    Forms named as biased (`differentiable`) take one more argument, dbias [4, H, K] of any float dtype, and fill it
    with dpre's sum over rows and steps.
    """

    forward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    kept: Callable[[int, int, int, int], Shapes]
    needs_gates: bool = False


def before_each_step(h: Tensor, h0: Tensor | None, resets: Tensor | None, dtype: torch.dtype) -> Tensor:
    """k_t h_{t-1} [B, T, H, K] in `dtype`, from h [B, T, H, K] as the forward stored it."""
    before = torch.empty_like(h, dtype=dtype, memory_format=torch.contiguous_format)
    before[:, 1:] = h[:, :-1]
    before[:, 0] = 0 if h0 is None else h0.to(h.dtype)
    return before if resets is None else before.masked_fill_(resets[:, :, None, None], 0)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, all [R, ...]; one product is a fifth faster by itself than as a batch of one."""
    if len(total) == 1:
        total[0].addmm_(left[0], right[0])
    else:
        total.baddbmm_(left, right)


def recurrent_gradient(before: Tensor, dpre: Tensor, like: Tensor) -> Tensor:
    """dR_g = sum over rows and steps of (k_t h_{t-1})^T da_g: [4, R, K, K] in the dtype of `like`, summed in one order.

    before [B, T, H, K], as before_each_step gives it, and dpre [B, T, 4, H, K] of one dtype.
    """
    B, T, H, K = before.shape
    N = B * T
    left = before.view(N, H, K).permute(1, 2, 0)
    right = dpre.permute(3, 0, 1, 2, 4).reshape(H, N, 4 * K)
    total = right.new_zeros(H, K, 4 * K)
    # One chain of N terms would lose more digits than autograd, which adds up T sums of B terms.
    step = -(-N // PIECES) if dpre.dtype == state_dtype(dpre.dtype) else N
    for start in range(0, N, max(1, step)):
        add_product(total, left[:, :, start : start + step], right[:, start : start + step])
    product = total.view(H, K, 4, K)
    if like.shape[1] == 1:
        product = product.sum(0, keepdim=True, dtype=state_dtype(product.dtype))
    return product.permute(2, 0, 1, 3).to(like.dtype).contiguous()


def differentiable(
    room: str, form: Callable[[str], Form], biased: Collection[str] = ()
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """(gates, recurrent, h0, c0, resets, forget_offset, impl, bias) -> h, h_last, c_last through
    torch.ops.hotplate.<room>. bias [4, H, K] or None is what gates have already, for its gradient alone.

    form: the form that an impl names, asked for when it runs: Triton's is imported no sooner. biased: impls whose forms
    make the gradient of a bias; torch.compile traces this choice, so it asks no form.
    h comes in the dtype of gates, the states in the state dtype. Gradients to gates, bias, recurrent, h0 and c0; a
    second derivative raises.
    """

    @torch.library.custom_op(f"hotplate::{room}", mutates_args=())
    def run(
        gates: Tensor,
        bias: Tensor | None,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
        impl: str,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return form(impl).forward(gates, recurrent, h0, c0, resets, forget_offset, keep)

    @run.register_fake
    def _(
        gates: Tensor,
        bias: Any,
        recurrent: Any,
        h0: Any,
        c0: Any,
        resets: Any,
        forget_offset: Any,
        impl: str,
        keep: bool,
    ) -> Any:
        B, T, _, H, K = gates.shape
        wide = state_dtype(gates.dtype)
        shapes = form(impl).kept(B, T, H, K) if keep else ((0,), (0,))
        states = [gates.new_empty(shape, dtype=wide) for shape in ((B, H, K), (B, H, K), *shapes)]
        return gates.new_empty(B, T, H, K), *states

    @torch.library.custom_op(f"hotplate::{room}_backward", mutates_args=())
    def run_backward(
        dh: Tensor,
        dh_last: Tensor | None,
        dc_last: Tensor | None,
        h: Tensor,
        first: Tensor,
        second: Tensor,
        gates: Tensor | None,
        bias: Tensor | None,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
        impl: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        saved = (h, first, second, gates, recurrent, h0, c0, resets)
        dbias = room_for(bias, h)
        room = () if bias is None else (dbias,)
        dpre, drecurrent, dh0, dc0 = form(impl).backward(dh, dh_last, dc_last, *saved, forget_offset, *room)
        return dpre, dbias, drecurrent, dh0, dc0

    @run_backward.register_fake
    def _(
        dh: Any, dh_last: Any, dc_last: Any, h: Tensor, first: Any, second: Any, gates: Any, bias: Any,
        recurrent: Tensor, *_: Any,
    ) -> Any:  # fmt: skip
        B, T, H, K = h.shape
        states = [h.new_empty(B, H, K, dtype=state_dtype(h.dtype)) for _ in range(2)]
        drecurrent = torch.empty_like(recurrent, memory_format=torch.contiguous_format)
        return h.new_empty(B, T, 4, H, K), room_for(bias, h), drecurrent, *states

    def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        gates, bias, recurrent, h0, c0, resets, forget_offset, impl, _ = inputs
        h, _, _, first, second = output
        kept_gates = gates if form(impl).needs_gates else None
        ctx.save_for_backward(h, first, second, kept_gates, bias, recurrent, h0, c0, resets)
        ctx.forget_offset, ctx.impl = forget_offset, impl
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(first, second)

    def derive(ctx: Any, dh: Tensor | None, dh_last: Tensor | None, dc_last: Tensor | None, *_: Any) -> Any:
        saved = ctx.saved_tensors  # once: a recomputed block makes them at this call
        dh = torch.zeros_like(saved[0]) if dh is None else dh
        gradients = direct(run_backward)(dh, dh_last, dc_last, *saved, ctx.forget_offset, ctx.impl)
        needed = [gradient if need else None for gradient, need in zip(gradients, ctx.needs_input_grad, strict=False)]
        return *needed, None, None, None, None

    run.register_autograd(derive, setup_context=remember)

    def call(
        gates: Tensor,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
        impl: str,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if bias is not None and impl not in biased:
            gates, bias = received(gates, bias), None
        leaves = (gates, bias, recurrent, h0, c0)
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in leaves)
        h, h_last, c_last, _, _ = direct(run)(gates, bias, recurrent, h0, c0, resets, forget_offset, impl, keep)
        return h, h_last, c_last

    return call
