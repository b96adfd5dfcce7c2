"""AdamW through the fused Adam of NVIDIA's apex or of DeepSpeed: their class, given our tensors as its state.

Both compute in one launch per 65,536-element chunk list, read no device scalar, and know neither a scale nor a skipped
update: gradients are scaled first, and whether to skip and the step's number are read by the host, which waits for the
device once an update. With narrow copies a second pass writes them.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hotplate.kernels import backends
from hotplate.kernels.checks import want

MODULES = {"apex": "apex.optimizers", "deepspeed": "deepspeed.ops.adam"}


def check(impl: str, like: Tensor) -> None:
    """ValueError with the reason when the package cannot serve tensors like `like`."""
    reason = backends.why_no_fused_adam(impl, like.device)
    want("adamw", reason is None, f"a package that serves impl={impl!r}", reason or "", "use impl='auto'")


def adamw(
    impl: str,
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    scale: Tensor,
    skipped: Tensor,
) -> None:
    """See op.py."""
    done, *counts = torch.stack([skipped, *steps]).tolist()
    if done != 0:
        return
    scaled = [g.float() for g in gradients]  # the same tensors where they are fp32
    torch._foreach_mul_(scaled, scale)
    rate = float(lr)
    for count in dict.fromkeys(counts):
        chosen = [index for index, found in enumerate(counts) if found == count]
        groups = [[tensors[index] for index in chosen] for tensors in (weights, scaled, first, second)]
        _step(impl, groups, int(count), lr=rate, betas=betas, eps=eps, weight_decay=weight_decay)
    torch._foreach_add_(list(steps), 1.0)
    if copies is not None:
        torch._foreach_copy_(list(copies), list(weights))


def _step(impl: str, groups: list[list[Tensor]], done: int, **options: Any) -> None:
    """One update of tensors that have had `done` of them. The class is made anew: it holds nothing of its own."""
    fused_adam = importlib.import_module(MODULES[impl]).FusedAdam
    leaves = [w.detach() for w in groups[0]]  # leaves that share the weights' memory
    optimizer = fused_adam(leaves, bias_correction=True, adam_w_mode=True, **options)
    for group in optimizer.param_groups:
        group["step"] = done  # apex counts by group
    for leaf, g, m, v in zip(leaves, *groups[1:], strict=True):
        leaf.grad = g
        optimizer.state[leaf] = {"step": done, "exp_avg": m, "exp_avg_sq": v}  # DeepSpeed counts by tensor
    optimizer.step()
