"""Attention in Triton as operators of torch: opaque to torch.compile, differentiable, lse included.

Letters: P positions of all rows, H query heads, K head width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.attention.adapters import placed
from hotplate.kernels.attention.problem import Call, Result
from hotplate.kernels.bias import room_for
from hotplate.kernels.direct import direct


@torch.library.custom_op("hotplate::attention", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edges_q: Tensor,
    edges_k: Tensor,
    tiles_q: Sequence[Tensor],
    tiles_k: Sequence[Tensor],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """out [P, H, K] and lse [H, P]; see launches.forward."""
    from hotplate.kernels.attention import launches

    return launches.forward(q, k, v, edges_q, edges_k, tiles_q, scale=scale, window=window, softcap=softcap)


@forward.register_fake
def _(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    P, H, K = q.shape
    return q.new_empty(P, H, K), q.new_empty(H, P, dtype=torch.float32)


@torch.library.custom_op("hotplate::attention_backward", mutates_args=())
def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    edges_q: Tensor,
    edges_k: Tensor,
    tiles_q: Sequence[Tensor],
    tiles_k: Sequence[Tensor],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, contiguous; see launches.backward."""
    from hotplate.kernels.attention import launches

    results = gradients(dout, dlse, q, k, v)
    options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
    launches.backward((q, k, v, out, lse), dout, dlse, edges_q, edges_k, tiles_q, tiles_k, results, **options)
    return results


@backward.register_fake
def gradients(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for dq, dk and dv, contiguous."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _derivative(operands: int, backward: Any) -> tuple[Callable[..., Any], Callable[..., None]]:
    """The gradient by `backward`(dout, dlse, operands, out, lse, edges, tiles, options), and what it keeps.

    `operands` counts the tensors that come first and have gradients; one may be None.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tiles_q, tiles_k, *ctx.options = inputs[operands + 2 :]
        ctx.set_materialize_grads(False)
        ctx.lists = len(tiles_q)
        ctx.save_for_backward(*inputs[:operands], *output, *inputs[operands : operands + 2], *tiles_q, *tiles_k)

    def differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        saved, tiles = ctx.saved_tensors[: operands + 4], list(ctx.saved_tensors[operands + 4 :])
        tiles_q, tiles_k = tiles[: ctx.lists], tiles[ctx.lists :]
        dout, dlse = arriving(dout, dlse, saved[operands])
        made = direct(backward)(dout, dlse, *saved, tiles_q, tiles_k, *ctx.options)
        found = [None if of is None else gradient for of, gradient in zip(saved, made, strict=False)]
        lists = [None] * len(tiles_q), [None] * len(tiles_k)  # gradients have the structure of the arguments
        return *found, None, None, *lists, *[None] * len(ctx.options)

    return differentiate, setup


DERIVATIVE = _derivative(3, backward)
torch.library.register_autograd("hotplate::attention", DERIVATIVE[0], setup_context=DERIVATIVE[1])


def parts(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [P, H, K], k and v [P, G, K] of qkv [P, H + 2 G, K]: views."""
    groups = (qkv.shape[1] - heads) // 2
    q, k, v = qkv.split([heads, groups, groups], dim=1)
    return q, k, v


@torch.library.custom_op("hotplate::self_attention", mutates_args=())
def joined(
    qkv: Tensor,
    bias: Tensor | None,
    edges_q: Tensor,
    edges_k: Tensor,
    tiles_q: Sequence[Tensor],
    tiles_k: Sequence[Tensor],
    scale: float,
    window: int | None,
    softcap: float | None,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """`forward` of the parts of qkv [P, H + 2 G, K]; bias is for the backward."""
    from hotplate.kernels.attention import launches

    q, k, v = parts(qkv, heads)
    return launches.forward(q, k, v, edges_q, edges_k, tiles_q, scale=scale, window=window, softcap=softcap)


@joined.register_fake
def _(qkv: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    (P, _, K), heads = qkv.shape, others[-1]
    return qkv.new_empty(P, heads, K), qkv.new_empty(heads, P, dtype=torch.float32)


@torch.library.custom_op("hotplate::self_attention_backward", mutates_args=())
def joined_backward(
    dout: Tensor,
    dlse: Tensor | None,
    qkv: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    edges_q: Tensor,
    edges_k: Tensor,
    tiles_q: Sequence[Tensor],
    tiles_k: Sequence[Tensor],
    scale: float,
    window: int | None,
    softcap: float | None,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """`backward` of the parts of qkv, into those of one gradient: nothing is left to be put together. And the gradient
    of a bias [H + 2 G, K], empty without one."""
    from hotplate.kernels.attention import launches

    made, dbias = joined_gradients(dout, dlse, qkv, bias)
    saved = (*parts(qkv, heads), out, lse)
    options: dict[str, Any] = {
        "scale": scale,
        "window": window,
        "softcap": softcap,
        "dbias": None if bias is None else dbias,
    }
    launches.backward(saved, dout, dlse, edges_q, edges_k, tiles_q, tiles_k, parts(made, heads), **options)
    return made, dbias


@joined_backward.register_fake
def joined_gradients(
    dout: Tensor, dlse: Tensor | None, qkv: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor]:
    """Room for dqkv and for the gradient of a bias, contiguous."""
    return qkv.new_empty(qkv.shape), room_for(bias, qkv)


JOINED_DERIVATIVE = _derivative(2, joined_backward)
torch.library.register_autograd("hotplate::self_attention", JOINED_DERIVATIVE[0], setup_context=JOINED_DERIVATIVE[1])


def arriving(dout: Tensor | None, dlse: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """What arrives from above as a backward pass reads it: zeros `like` for no dout, features that adjoin."""
    dout = torch.zeros_like(like) if dout is None else dout
    return dout if dout.stride(2) == 1 else dout.contiguous(), None if dlse is None else dlse.contiguous()


def rows(x: Tensor) -> Tensor:
    """[P, H, K] whose features adjoin; a view wherever the strides allow one."""
    flat = x.flatten(0, 1)
    return flat if flat.stride(2) == 1 else flat.contiguous()


def attention(call: Call) -> Result:
    """See op.py."""
    at = placed(call)
    places = (at.edges_q, at.edges_k, list(at.tiles_q), list(at.tiles_k))
    options = call.scale, call.window, call.softcap
    if call.qkv is not None:
        out, lse = direct(joined)(rows(call.qkv), call.bias, *places, *options, call.q.shape[2])
    else:
        out, lse = direct(forward)(rows(call.q), rows(call.k), rows(call.v), *places, *options)
    return out.view(call.q.shape), lse.view(-1, *call.q.shape[:2]).transpose(0, 1) if call.lse else None
