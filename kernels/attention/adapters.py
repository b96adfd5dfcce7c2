"""Attention by other packages and other parts of torch, called as they are published.

Each backend says why it cannot serve a problem, and serves it otherwise. All take packed positions [P, H, K], edges
and a longest length that the host knows (the row), so that none waits for the documents' lengths, xformers excepted.

| name | call | source |
| --- | --- | --- |
| flash | flash_attn.flash_attn_varlen_func | FlashAttention 2, Dao 2023 |
| fa3 | flash_attn_interface (or fa3_fwd_interface, forward only).flash_attn_varlen_func | FlashAttention 3, 2024 |
| fa4 | flash_attn.cute.flash_attn_varlen_func | FlashAttention 4 |
| varlen | torch.nn.attention.varlen.varlen_attn | torch's own FlashAttention 2 |
| cudnn | scaled_dot_product_attention, cuDNN alone allowed | torch |
| flex | torch.nn.attention.flex_attention, compiled on a GPU | torch |
| xformers | xformers.ops.memory_efficient_attention with a block-diagonal mask | xformers |
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from hotplate.kernels import backends
from hotplate.kernels.attention.problem import Call, Problem, Result
from hotplate.kernels.attention.tiles import Layout, layout

HALF = (torch.bfloat16, torch.float16)


def _gpu(problem: Problem, least: tuple[int, int], most_width: int, dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """What all CUDA packages ask: a device of a capability, a dtype, a head width that is a multiple of 8."""
    why = []
    if problem.device.type != "cuda":
        why.append(f"needs a CUDA tensor, got one on {problem.device}")
    elif (found := backends.capability(problem.device)) is None or found < least:
        why.append(f"needs compute capability {least[0]}.{least[1]} or later, this device has {found}")
    if problem.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        why.append(f"needs {names}, got {str(problem.dtype).removeprefix('torch.')}")
    if most_width < problem.K or problem.K % 8:
        why.append(f"needs a head width of at most {most_width} that is a multiple of 8, got {problem.K}")
    return why


def _lacks(problem: Problem, *features: str) -> list[str]:
    names = {"window": "sliding window", "softcap": "soft cap", "lse": "lse", "packed": "documents within rows"}
    return [f"has no {names[name]}" for name in features if getattr(problem, name)]


def _package(module: str, distribution: str, why: list[str]) -> list[str]:
    """`why`, and whether the package is there; it is imported only where nothing else stands against it."""
    if not backends.installed(module):
        return [*why, f"{distribution} is not installed"]
    return why or [reason for reason in [backends.broken(module)] if reason]


def placed(call: Call) -> Layout:
    """The call's layout, made if the caller has none."""
    if isinstance(call.documents, Layout):
        return call.documents
    B, T, S = call.q.shape[0], call.q.shape[1], call.k.shape[1]
    return layout(call.documents, B, T, S, device=call.q.device)


def _varlen(function: Callable[..., Any], call: Call, no_window: tuple[int | None, int | None]) -> Result:
    """FlashAttention's signature, of which every version has these keywords. A window counts keys before one's own."""
    at = placed(call)
    out = function(
        *(x.flatten(0, 1) for x in (call.q, call.k, call.v)),
        cu_seqlens_q=at.edges_q,
        cu_seqlens_k=at.edges_k,
        max_seqlen_q=call.q.shape[1],
        max_seqlen_k=call.k.shape[1],
        softmax_scale=call.scale,
        causal=True,
        window_size=no_window if call.window is None else (call.window - 1, 0),
        softcap=call.softcap or 0.0,
    )
    return (out[0] if isinstance(out, tuple) else out).view(call.q.shape), None


def flash_reasons(problem: Problem) -> list[str]:
    why = _gpu(problem, (8, 0), 256, HALF) + _lacks(problem, "lse")
    return _package("flash_attn", "flash-attn", why)


def flash(call: Call) -> Result:
    return _varlen(importlib.import_module("flash_attn").flash_attn_varlen_func, call, (-1, -1))


def _fa3_module() -> str:
    """The full package, else the forward that PyPI's fa3-fwd holds."""
    full = "flash_attn_interface"
    return full if backends.installed(full) or not backends.installed("fa3_fwd_interface") else "fa3_fwd_interface"


def fa3_reasons(problem: Problem) -> list[str]:
    forward_only = _fa3_module() == "fa3_fwd_interface"
    why = _gpu(problem, (9, 0), 256, HALF[:1] if forward_only else HALF) + _lacks(problem, "lse")
    if problem.device.type == "cuda" and (backends.capability(problem.device) or (9,))[0] != 9:
        why.append("is for compute capability 9")
    if forward_only:
        why += _lacks(problem, "window") + (["fa3-fwd has no backward"] if problem.gradient else [])
    return _package(_fa3_module(), "flash-attn-3 (or fa3-fwd)", why)


def fa3(call: Call) -> Result:
    return _varlen(importlib.import_module(_fa3_module()).flash_attn_varlen_func, call, (-1, -1))


def fa4_reasons(problem: Problem) -> list[str]:
    why = _gpu(problem, (9, 0), 128, HALF) + _lacks(problem, "lse")
    if problem.softcap and problem.gradient:
        why.append("has no backward with a soft cap")
    return _package("flash_attn.cute", "flash-attn-4", why)


def fa4(call: Call) -> Result:
    return _varlen(importlib.import_module("flash_attn.cute").flash_attn_varlen_func, call, (None, None))


@functools.cache
def _varlen_keywords() -> frozenset[str]:
    module = importlib.import_module("torch.nn.attention.varlen")
    return frozenset(inspect.signature(module.varlen_attn).parameters)


def varlen_reasons(problem: Problem) -> list[str]:
    why = _gpu(problem, (8, 0), 256, HALF) + _lacks(problem, "softcap", "lse")
    why = _package("torch.nn.attention.varlen", "torch >= 2.11", why)
    if problem.Hkv != problem.H and not why and "enable_gqa" not in _varlen_keywords():
        why.append(f"torch {torch.__version__} has no grouped heads here")
    return why


def varlen(call: Call) -> Result:
    function, at = importlib.import_module("torch.nn.attention.varlen").varlen_attn, placed(call)
    grouped = {"enable_gqa": True} if call.q.shape[2] != call.k.shape[2] else {}
    q, k, v = (x.flatten(0, 1) for x in (call.q, call.k, call.v))
    lengths = call.q.shape[1], call.k.shape[1]
    left = -1 if call.window is None else call.window - 1
    out = function(q, k, v, at.edges_q, at.edges_k, *lengths, scale=call.scale, window_size=(left, 0), **grouped)
    return out.view(call.q.shape), None


def cudnn_reasons(problem: Problem) -> list[str]:
    why = _gpu(problem, (8, 0), 128, HALF) + _lacks(problem, "packed", "window", "softcap", "lse")
    if problem.T != problem.S:
        why.append(f"its causal mask needs T == S, got {problem.T} and {problem.S}")
    if problem.device.type == "cuda" and not torch.backends.cudnn.is_available():
        why.append("this torch has no cuDNN")
    return why


def cudnn(call: Call) -> Result:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
    options: dict[str, Any] = {"is_causal": True, "scale": call.scale, "enable_gqa": q.shape[1] != k.shape[1]}
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    return out.transpose(1, 2), None


def flex_reasons(problem: Problem) -> list[str]:
    why = []
    if problem.device.type not in ("cpu", "cuda"):
        why.append(f"needs a CPU or CUDA tensor, got one on {problem.device}")
    if problem.device.type == "cpu" and problem.gradient:
        why.append("has no backward on a CPU")
    if problem.dtype == torch.float64 and problem.device.type == "cuda":
        why.append("needs 32 bits or fewer on a GPU, got float64")
    if problem.device.type == "cuda" and not backends.installed("triton"):
        why.append("triton is not installed")
    return why


_MASKS: WeakKeyDictionary[Layout, dict[tuple[int | None, torch.device], Any]] = WeakKeyDictionary()  # one per batch


def _flex_mask(at: Layout, window: int | None, device: torch.device) -> Any:
    """Block mask [B, 1, T, S]: causal from the end, within documents and the window. Kept while the layout lives."""
    from torch.nn.attention.flex_attention import create_block_mask

    known = _MASKS.setdefault(at, {})
    if (window, device) not in known:
        B, T, S = at.B, at.T, at.S
        document = None
        if at.cu_seqlens is not None:
            position = torch.arange(B * T, device=device, dtype=at.cu_seqlens.dtype)
            document = torch.searchsorted(at.cu_seqlens[1:].contiguous(), position, right=True).view(B, T)

        def seen(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
            visible = s <= t + (S - T)
            if window is not None:
                visible = visible & (s > t + (S - T) - window)
            return visible if document is None else visible & (document[b, t] == document[b, s])

        known[window, device] = create_block_mask(seen, B, None, T, S, device=device)
    return known[window, device]


@functools.cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def flex(call: Call) -> Result:
    cap = call.softcap or 1.0

    def capped(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    from torch.nn.attention.flex_attention import AuxRequest

    leaves = [call.q, call.k, call.v]
    if not call.q.is_cuda:  # it refuses what requires a gradient even where none is taken
        leaves = [x.detach() for x in leaves]
    out, aux = _flex(call.q.is_cuda)(
        *(x.transpose(1, 2) for x in leaves),
        score_mod=None if call.softcap is None else capped,
        block_mask=_flex_mask(placed(call), call.window, call.q.device),
        scale=call.scale,
        enable_gqa=call.q.shape[2] != call.k.shape[2],
        return_aux=AuxRequest(lse=call.lse),
    )
    return out.transpose(1, 2), aux.lse if call.lse else None


def xformers_reasons(problem: Problem) -> list[str]:
    why = _gpu(problem, (8, 0), 256, HALF) + _lacks(problem, "softcap", "lse")
    if problem.window and problem.T != problem.S:
        why.append("counts a window from another end where T < S")
    return _package("xformers.ops", "xformers", why)


def xformers(call: Call) -> Result:
    """Its mask wants the lengths on the host: the device is waited for. Grouped heads are a fifth axis."""
    ops, bias = (importlib.import_module(f"xformers.ops{name}") for name in ("", ".fmha.attn_bias"))
    at, H, Hkv = placed(call), call.q.shape[2], call.k.shape[2]
    pairs = zip(at.edges_q.diff().tolist(), at.edges_k.diff().tolist(), strict=True)
    queries, keys = zip(*((q, k) for q, k in pairs if q), strict=True)
    mask = bias.BlockDiagonalCausalFromBottomRightMask.from_seqlens(queries, keys)
    if call.window is not None:
        mask = mask.make_local_attention(call.window)
    q, k, v = (x.flatten(0, 1)[None] for x in (call.q, call.k, call.v))
    if Hkv != H:
        q = q.unflatten(2, (Hkv, H // Hkv))
        k, v = (x[:, :, :, None].expand(-1, -1, -1, H // Hkv, -1) for x in (k, v))
    return ops.memory_efficient_attention(q, k, v, attn_bias=mask, p=0.0, scale=call.scale).view(call.q.shape), None
