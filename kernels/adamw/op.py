"""One AdamW update of many tensors at once: contract, checks and the choice of implementation.

Letter: N tensors.
"""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from hotplate.kernels.adamw import packages
from hotplate.kernels.checks import want
from hotplate.kernels.launch import IMPLS, choose_impl

NARROW = (torch.bfloat16, torch.float16)
FORMS = {"triton": "streaming"}  # modules that are not called as their impl is


@torch.no_grad()
def adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    scale: Tensor,
    skipped: Tensor,
    copies: Sequence[Tensor] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    impl: str = "auto",
) -> None:
    """With g = scale gradient and t = step + 1, for each of N tensors, in place and in one pass over memory:

        m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
        w = (1 - lr weight_decay) w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)      step = t

    and copy = w rounded, where there are copies. weights, first (m) and second (v): N contiguous fp32 tensors each
    (fp64 with impl reference and eager). gradients: N contiguous tensors of the weights' dtype, or all bf16 (fp16
    except for native), converted as they are read. steps: N tensors fp32 []. copies: N contiguous tensors (bf16; fp16
    except for native) or None. lr: a number, or a tensor []. scale and skipped: fp32 [] on the device of the
    weights. Where skipped is not 0 nothing is changed, bit for bit. The host waits for nothing on a GPU. gradients may
    be overwritten with the scaled ones (torch's own form does that).
    impl: auto, eager (torch's fused form), native (C on a CPU), triton (two launches for all), reference, or apex or
    deepspeed (those packages' fused Adam: the host waits once an update, `scale` is a pass of its own). auto is triton
    on CUDA, native on a CPU where a C compiler is found, else eager; a name never falls back.
    Memory traffic at the least: 28 bytes per weight, 30 with a copy, 2 less with 16-bit gradients.
    ValueError on any other shape, dtype, device or impl. Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """
    if not weights:
        return
    impl = choose_impl("adamw", impl, weights[0], (*IMPLS, *packages.MODULES))
    _check(weights, {"gradients": gradients, "first": first, "second": second}, steps, copies)
    like = weights[0]
    for name, value in (("scale", scale), ("skipped", skipped)):
        holds = value.ndim == 0 and value.dtype == torch.float32 and value.device == like.device
        facts = f"{value.dtype} {list(value.shape)} on {value.device}"
        want("adamw", holds, f"{name} float32 [] on {like.device}", facts, "keep it on the device")
    rest = (steps, copies, lr, betas, eps, weight_decay, scale, skipped)
    if impl in ("native", "triton", *packages.MODULES):
        facts = str(like.dtype)
        want("adamw", like.dtype == torch.float32, f"float32 weights with impl={impl!r}", facts, "keep fp32 masters")
    if impl in packages.MODULES:
        packages.check(impl, like)
        packages.adamw(impl, weights, gradients, first, second, *rest)
        return
    form = importlib.import_module(f"hotplate.kernels.adamw.{FORMS.get(impl, impl)}")
    form.adamw(weights, gradients, first, second, *rest)


def _check(
    weights: Sequence[Tensor],
    others: dict[str, Sequence[Tensor]],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
) -> None:
    N, like = len(weights), weights[0]
    counts = {**{name: len(tensors) for name, tensors in others.items()}, "steps": len(steps)}
    counts |= {} if copies is None else {"copies": len(copies)}
    want("adamw", set(counts.values()) == {N}, f"{N} tensors of each", str(counts), "one per weight")
    arriving = others["gradients"][0].dtype
    for name, tensors in (("weights", weights), *others.items(), ("copies", copies or weights)):
        wanted = arriving if name == "gradients" and arriving in NARROW else like.dtype
        for w, x in zip(weights, tensors, strict=True):
            holds = x.shape == w.shape and x.device == like.device and x.is_contiguous()
            holds = holds and (name == "copies" or x.dtype == wanted)
            facts = f"{x.dtype} {list(x.shape)} on {x.device}, strides {x.stride()}"
            want("adamw", holds, f"contiguous {name} {wanted} {list(w.shape)} on {like.device}", facts, "see adamw")
    for t in steps:
        holds = t.ndim == 0 and t.dtype == torch.float32 and t.device == like.device
        want("adamw", holds, f"steps float32 [] on {like.device}", f"{t.dtype} {list(t.shape)} on {t.device}", "count")
