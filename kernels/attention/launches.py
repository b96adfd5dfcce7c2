"""Launches of the Triton kernels: block sizes from configurations.json, tensor descriptors where they serve.

Letters: P positions of queries (B T) or keys (B S), H query heads, Hkv key heads, K head width. Needs Triton.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.ragged_tma import create_ragged_descriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from hotplate.kernels.attention import tiles as lists
from hotplate.kernels.attention.kernel_backward import keys_kernel, queries_kernel
from hotplate.kernels.attention.kernel_forward import forward_kernel
from hotplate.kernels.launch import interpreting, launch, power_of_2
from hotplate.kernels.sums import add_up

LEAST_WIDTH = 16  # the narrowest product of the matrix units
DESCRIPTOR_ALIGNMENT = 16  # bytes, of a descriptor's base and strides
LOG2_E = math.log2(math.e)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How one pass is cut. own: positions of a program; step: positions that it takes at a time."""

    own: int
    step: int
    warps: int
    stages: int


@cache
def shipped() -> dict[tuple[int, str, str, int], Configuration]:
    """(arch, pass, kind of dtype, head width) -> configuration, as configurations.json lists them."""
    body = json.loads(Path(__file__).with_name("configurations.json").read_text(encoding="utf-8"))
    cuts = ("own", "step", "warps", "stages")
    return {
        (row["arch"], row["pass"], row["dtype"], row["head_width"]): Configuration(**{name: row[name] for name in cuts})
        for row in body["configurations"]
    }


def kind(dtype: torch.dtype) -> str:
    return "float32" if dtype == torch.float32 else "16 bit"


@cache
def architecture(device: torch.device) -> int:
    """The architecture whose descriptors a device has: 90 or 100; 80, for all others, has none."""
    if device.type != "cuda":
        return 90 if interpreting() else 80
    return {9: 90, 10: 100}.get(torch.cuda.get_device_capability(device)[0], 80)


def configuration(name: str, like: Tensor, described: bool) -> Configuration:
    """Of the pass `name` (forward, keys, queries) for inputs like [P, H, K], with or without descriptors."""
    width = max(32, power_of_2(like.shape[2]))
    return shipped()[architecture(like.device) if described else 80, name, kind(like.dtype), width]


def limits(name: str, K: int, described: bool, softcap: bool) -> dict[str, int]:
    """The most registers of the pass `name`, where the compiler takes more than it needs: of up to 64 features four
    programs of `queries` fit a multiprocessor with 128, and Triton 3.6 would take more for sums over rows."""
    return {"maxnreg": 128} if name == "queries" and K <= 64 and described and not softcap else {}


def describable(*tensors: Tensor) -> bool:
    """Whether loads may go through tensor descriptors: copies by a unit of its own, from compute capability 9 on.

    For 16 bits alone: fp32 products do not read shared memory. Heads must lie side by side, K be a power of two, bases
    and strides be multiples of 16 bytes.
    """
    K = tensors[0].shape[2]
    return (
        architecture(tensors[0].device) > 80
        and tensors[0].itemsize == 2
        and max(LEAST_WIDTH, power_of_2(K)) == K
        and all(
            x.stride(1) == K
            and x.data_ptr() % DESCRIPTOR_ALIGNMENT == 0
            and x.stride(0) * x.itemsize % DESCRIPTOR_ALIGNMENT == 0
            for x in tensors
        )
    )


def _descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Blocks of `rows` positions and one head of x [P, H, K], bounded by the document that a load names."""
    P, H, K = x.shape
    return create_ragged_descriptor(x.as_strided([P, H * K], [x.stride(0), 1]), [rows, K])


def _scores(dtype: torch.dtype, scale: float, softcap: float | None) -> dict[str, float]:
    """The weight of a product s is exp(unit s), or of bend tanh(squeeze s); a power of two in 16 bits."""
    base = 1.0 if dtype == torch.float32 else LOG2_E
    if softcap is None:
        return {"unit": scale * base, "bend": 0.0, "squeeze": 0.0}
    return {"unit": 1.0, "bend": softcap * base, "squeeze": scale / softcap}


def _padded(K: int) -> dict[str, int]:
    return {"K": K, "KP": max(LEAST_WIDTH, power_of_2(K))}


def _walk(
    name: str,
    kernel: triton.runtime.JITFunction,
    tensors: dict[str, Tensor],
    walked: tuple[str, str],
    tiles: Sequence[Tensor],
    window: int | None,
    softcap: float | None,
    scale: float,
    sums: int = 0,
    **others: Any,
) -> Tensor | None:
    """Starts the pass `name`: `tensors` [., heads, K] are its operands, `walked` those that come block after block; a
    program has one block of each other. Of `sums` results it gives sums over the rows of each tile, fp32 [tiles, sums
    heads K]."""
    q, k = tensors["q"], tensors["k"]
    described = describable(*tensors.values())
    cut = configuration(name, q, described)
    if cut.own in lists.BLOCKS:
        listed = tiles[lists.BLOCKS.index(cut.own)]
    else:  # fp32 with wide heads alone: a list that every layout had would cost all others its launches
        axis = "k" if name == "keys" else "q"
        listed = lists.tile_lists(others[f"edges_{axis}"], tensors[axis].shape[0], [cut.own])[0]
    rows = {operand: cut.step if operand in walked else cut.own for operand in tensors}
    blocks = {operand: _descriptor(x, rows[operand]) for operand, x in tensors.items() if described}
    heads, own, step = ("Hkv", "N", "M") if name == "keys" else ("H", "M", "N")
    count = (k if name == "keys" else q).shape[1]
    parts = q.new_empty(listed.shape[0], sums * count * q.shape[2], dtype=torch.float32) if sums else None
    strides = {f"{n}_{axis}": x.stride(d) for n, x in tensors.items() for d, axis in ((0, "row"), (1, "head"))}
    launch(
        kernel,
        q,
        listed.shape[0] * count,
        num_warps=cut.warps,
        num_stages=cut.stages,
        tiles=listed,
        positions=q.shape[0],
        window=window or 0,
        GROUP=q.shape[1] // k.shape[1],
        DESCRIBED=described,
        WINDOW=window is not None,
        SOFTCAP=softcap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        FAST=not interpreting(),
        **{heads: count, own: cut.own, step: cut.step},
        **limits(name, q.shape[2], described, softcap is not None),
        **(tensors | blocks),
        **strides,
        **_scores(q.dtype, scale, softcap),
        **({} if name == "forward" else {"scale": scale, "parts": parts}),
        **_padded(q.shape[2]),
        **others,
    )
    return parts


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edges_q: Tensor,
    edges_k: Tensor,
    tiles_q: Sequence[Tensor],
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """out [P, H, K] and lse [H, P] of q [P, H, K], k and v [., Hkv, K]; their features adjoin.

    options: scale, window and softcap.
    """
    P, H, K = q.shape
    out, lse = q.new_empty(P, H, K), q.new_empty(H, P, dtype=torch.float32)
    edges: dict[str, Any] = {"edges_q": edges_q, "edges_k": edges_k}
    tensors = {"q": q, "k": k, "v": v}
    _walk("forward", forward_kernel, tensors, ("k", "v"), tiles_q, out=out, lse=lse, **edges, **options)
    return out, lse


def backward(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    dout: Tensor,
    dlse: Tensor | None,
    edges_q: Tensor,
    edges_k: Tensor,
    tiles_q: Sequence[Tensor],
    tiles_k: Sequence[Tensor],
    results: tuple[Tensor, Tensor, Tensor],
    dbias: Tensor | None = None,
    **options: Any,
) -> None:
    """Writes dq, dk and dv, the results: like q, k and v, heads side by side, rows of dk and of dv equally far apart;
    and their sums over positions, dbias [H + 2 Hkv, K]. saved: q, k, v, out and lse."""
    q, k, v, out, lse = saved
    fp32 = q.dtype == torch.float32
    pairs = lse.new_empty(*lse.shape, 2)  # lse in the unit of scores, and delta
    dq, dk, dv = results
    tensors = {"q": q, "k": k, "v": v, "dout": dout}
    options |= {"edges_q": edges_q, "edges_k": edges_k, "pairs": pairs}

    def queries(summing: bool) -> Tensor | None:
        others: dict[str, Any] = {"dq": dq, "lse": lse, "dlse": dlse, "result_row": dq.stride(0), "SUMMING": summing}
        others |= {"out": None if fp32 else out, "sums": 0 if summing or dbias is None else 1}
        return _walk("queries", queries_kernel, tensors, ("k", "v"), tiles_q, **others, **options)

    if fp32:
        queries(summing=True)
    of_queries = queries(summing=False)
    made: dict[str, Any] = {"dk": dk, "dv": dv, "result_row": dk.stride(0), "sums": 0 if dbias is None else 2}
    of_keys = _walk("keys", keys_kernel, tensors, ("q", "dout"), tiles_k, **made, **options)
    if dbias is not None:
        for parts, result in zip((of_queries, of_keys), dbias.split([q.shape[1], 2 * k.shape[1]]), strict=True):
            assert parts is not None, "a pass that sums gives parts"
            add_up(parts, result, opaque=True)
