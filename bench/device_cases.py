"""Small and awkward calls of every differentiable room, to be compared with float64 (device_check.py).

Letters as in the rooms. Tensors are made when a case is reached.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hotplate.kernels.attention import attention, self_attention
from hotplate.kernels.cross_entropy import IGNORED, linear_cross_entropy, linear_losses
from hotplate.kernels.layernorm import add_layernorm, layernorm
from hotplate.kernels.lstm import lstm
from hotplate.kernels.lstm_dense import lstm_dense
from hotplate.kernels.lstm_diagonal import lstm_diagonal
from hotplate.kernels.mlp import activation
from hotplate.kernels.qlstm import qlstm
from hotplate.kernels.rmsnorm import add_rmsnorm, rmsnorm
from hotplate.kernels.rotary import cut_heads, rotation


@dataclass(frozen=True)
class Case:
    """call(*leaves, impl=...) gives a tensor or several; gradients go to every leaf."""

    label: str
    call: Callable[..., Any]
    leaves: Sequence[Tensor]


def cases(quick: bool, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Of all rooms, with leaves of `dtype`; states, weights of rows and angles are fp32."""
    for made in (recurrent, attentions, losses, norms, activations, rotaries):
        yield from made(quick, dtype, device)


def _leaf(shape: Sequence[int], dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, device=device)).to(dtype)


def recurrent(quick: bool, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Widths that are round, odd and past a tile, rows one past a tile; resets with neighbours, first and last."""
    for B, T in [(3, 17)] if quick else [(3, 17), (17, 130), (33, 1024)]:
        for D in (40, 256) if quick else (40, 256, 768):
            one_step = (("qlstm", qlstm, 4, {"forget_offset": 1.0}), ("qlstm coupled", qlstm, 3, {"coupled": True}))
            for name, op, gates, options in one_step:
                yield _recurrent(name, op, B, T, (gates, D), None, 1, dtype, device, options)
            yield _recurrent("lstm_diagonal", lstm_diagonal, B, T, (4, D), (4, D), 2, dtype, device)
        for H, K in [(3, 16), (2, 64)] if quick else [(3, 16), (5, 32), (12, 64)]:
            yield _recurrent("lstm", lstm, B, T, (4, H, K), (4, H, K, K), 2, dtype, device)
            yield _recurrent("lstm shared", lstm, B, T, (4, H, K), (4, 1, K, K), 2, dtype, device)
        for D in (64,) if quick else (96, 256, 768):
            yield _recurrent("lstm_dense", lstm_dense, B, T, (4, D), (4, D, D), 2, dtype, device)


def _recurrent(
    name: str,
    op: Callable[..., Any],
    B: int,
    T: int,
    gates: tuple[int, ...],
    weight: tuple[int, ...] | None,
    states: int,
    dtype: torch.dtype,
    device: str,
    options: dict[str, Any] | None = None,
) -> Case:
    """gates and weight: shapes after [B, T] and of the recurrent weight; states: c, or h and c."""
    leaves = [_leaf((B, T, *gates), dtype, device)]
    if weight is not None:
        leaves.append(_leaf(weight, dtype, device, weight[-1] ** -0.5))
    leaves += [_leaf((B, *gates[1:]), torch.float32, device) for _ in range(states)]
    leaves.append(_leaf(gates, dtype, device))  # a bias, for its gradient alone
    resets = torch.rand(B, T, device=device) < 0.02
    resets[0, 0] = resets[-1, -1] = True
    resets[B // 2, T // 2 : T // 2 + 2] = True

    def call(*tensors: Tensor, impl: str) -> Any:
        *operands, bias = tensors
        return op(*operands, resets, bias=bias, impl=impl, **(options or {}))

    return Case(f"{name} B{B} T{T} {list(gates)}", call, leaves)


# Edges of documents in rows of T: empty ones, of one position, across a row's end, past a tile.
PACKINGS = {
    (2, 33): (0, 1, 1, 18, 33, 40, 66, 66),
    (3, 300): (0, 8, 24, 25, 290, 300, 600, 600, 664, 900),
    (1, 8192): None,
    (4, 2048): tuple(range(0, 8193, 32)),
}
FEATURES: tuple[dict[str, Any], ...] = (
    {},
    {"window": 40},
    {"softcap": 5.0},
    {"scale": 4.0},
    {"window": 9, "softcap": 5.0},
)


def attentions(quick: bool, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Every packing with every feature in 64 features a head, other widths plain; scale 4 makes scores of hundreds.
    Each width, feature and dtype is three kernels to compile."""
    widths = (24, 64) if quick else (32, 64, 96, 128) if dtype == torch.float32 else (32, 64, 128, 256)
    for (B, T), edges in list(PACKINGS.items())[: 1 if quick else None]:
        documents = None if edges is None else torch.tensor(edges, dtype=torch.int32, device=device)
        for K in widths:
            H, G = (4, 2) if K == 64 else (2, 1)
            for features in FEATURES if K == 64 else FEATURES[:1]:
                label = f"B{B} T{T} H{H}/{G} K{K} {features or ''}"
                qkv = _leaf((B, T, H + 2 * G, K), dtype, device)
                apart = partial(attention, cu_seqlens=documents, return_lse=True, **features)
                yield Case(f"attention {label}", apart, qkv.split([H, G, G], dim=2))
                joined = partial(_biased_attention, heads=H, cu_seqlens=documents, **features)
                yield Case(f"self_attention {label}", joined, [qkv, _leaf((H + 2 * G, K), dtype, device)])


def _biased_attention(qkv: Tensor, bias: Tensor, **options: Any) -> Tensor:
    return self_attention(qkv, bias=bias, **options)


LOSSES: tuple[dict[str, Any], ...] = (
    {},
    {"softcap": 5.0},
    {"label_smoothing": 0.1, "z_loss": 1e-3, "logit_scale": 0.5},
)


def losses(quick: bool, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Vocabularies of one tile and of many, targets that are ignored, rows of weight 0."""
    large = [(4096, 768, 500), (1000, 512, 16384), (2048, 768, 50304)]
    for N, D, V in [(17, 40, 61), (33, 64, 5000), *([] if quick else large)]:
        for options in LOSSES:
            x, weight = _leaf((N, D), dtype, device), _leaf((V, D), dtype, device, D**-0.5)
            targets = torch.randint(V, (N,), device=device)
            targets[N // 2] = IGNORED
            weights = torch.rand(N, device=device)
            weights[-1] = 0
            label = f"N{N} D{D} V{V} {options or ''}"
            summed = partial(linear_cross_entropy, targets=targets, weights=weights, **options)
            yield Case(f"linear_cross_entropy {label}", partial(_loss, summed), [x, weight])
            yield Case(f"linear_losses {label}", partial(linear_losses, targets=targets, **options), [x, weight])


def _loss(summed: Callable[..., Any], *leaves: Tensor, impl: str) -> Tensor:
    """The sum alone: nothing flows back through the sum of weights."""
    return summed(*leaves, impl=impl).loss


def norms(quick: bool, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Odd widths, one row, one past a stripe of rows."""
    for M, D in [(1, 300), (33, 130)] if quick else [(1, 300), (33, 130), (513, 768), (4097, 2048), (100, 8192)]:
        rows = [_leaf((M, D), dtype, device) + 0.5 for _ in range(2)]
        weight, bias = (0.5 + torch.rand(2, D, device=device)).to(dtype)
        for op, leaves in (
            (rmsnorm, [rows[0], weight]),
            (add_rmsnorm, [*rows, weight]),
            (layernorm, [rows[0], weight, bias]),
            (add_layernorm, [*rows, weight, bias]),
        ):
            yield Case(f"{op.__name__} M{M} D{D}", op, leaves)


def activations(quick: bool, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Gated and plain kinds, values into both tails."""
    for M, F in [(5, 41)] if quick else [(5, 41), (1000, 3072), (333, 5000)]:
        for kind in ("swiglu", "gelu", "relu2"):
            x = _leaf((M, 2 * F if kind == "swiglu" else F), dtype, device, 4.0)
            yield Case(f"mlp {kind} M{M} F{F}", partial(activation, kind=kind), [x])
            biased = partial(_biased_activation, kind=kind)
            yield Case(f"mlp {kind} bias M{M} F{F}", biased, [x, _leaf(x.shape[1:], dtype, device)])


def _biased_activation(x: Tensor, bias: Tensor, *, kind: str, impl: str) -> Tensor:
    return activation(x, kind, bias, impl=impl)


def rotaries(quick: bool, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Rotation and head norms, each alone and together."""
    for B, T, H, G, K in [(2, 9, 3, 1, 40)] if quick else [(2, 9, 3, 1, 40), (3, 257, 12, 4, 64), (2, 300, 8, 2, 128)]:
        qkv = _leaf((B, T, H + 2 * G, K), dtype, device)
        turn = rotation(torch.randint(4096, (B, T), device=device), K, 10_000.0)
        weights = list((0.5 + torch.rand(2, K, device=device)).to(dtype))
        label = f"rotary B{B} T{T} H{H}/{G} K{K}"
        yield Case(label, partial(cut_heads, heads=H, turn=turn), [qkv])
        for name, angles in (("head norms", None), ("turned head norms", turn)):
            yield Case(f"{label} {name}", partial(_normed, heads=H, turn=angles), [qkv, *weights])


def _normed(qkv: Tensor, *weights: Tensor, impl: str, heads: int, turn: Any) -> Any:
    """Weights by place: partial would put names before them."""
    return cut_heads(qkv, heads, turn, *weights, impl=impl)
