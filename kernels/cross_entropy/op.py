"""Output projection and cross entropy in one operation: contract, checks and the choice of implementation.

Letters: N targets, D width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hotplate.kernels.checks import state_dtype, want, want_float
from hotplate.kernels.cross_entropy import chunks, reference, registered
from hotplate.kernels.cross_entropy.reference import Loss
from hotplate.kernels.direct import direct
from hotplate.kernels.launch import choose_impl

IMPLS = ("auto", "eager", "native", "reference", "triton")
# Of logits, where the caller names no number: many rows per product, little beside the weight and its gradient. Each
# chunk reads and writes that gradient once; a GPU, whose memory is larger, gets fewer of them. Not measured on a GPU.
CHUNK_BYTES = {"cpu": 64 << 20}
GPU_CHUNK_BYTES = 512 << 20
IGNORED = -100  # torch's own ignore_index


class LossSum(NamedTuple):
    """Sums over this call's rows: whoever needs a mean divides once, at the end."""

    loss: Tensor  # fp32 (fp64) [], with the gradient
    weight: Tensor  # float [], sum of the weights of scored rows; their number where there are no weights


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    impl: str = "auto",
) -> LossSum:
    """loss = sum_n weights_n loss_n, with l = logit_scale x weight^T, then softcap tanh(l / softcap) unless that is 0:

        loss_n = lse_n - (1 - s) l_{n, target_n} - s mean_v l_nv + z_loss lse_n^2,   lse_n = log sum_v exp(l_nv)

    and s = label_smoothing. x [N, D] and weight [V, D] of one dtype (bf16|fp16|fp32|fp64), targets int64 [N] in 0..V-1
    or -100, weights float [N] or None = ones. A row of weight 0, or of target -100, adds exactly zero to loss and
    gradients, whatever it holds. Gradients to x and weight, none to weights; the weight's is summed over all chunks in
    fp32 and rounded once, as a matrix shared with an embedding needs.
    Logits, softmax and gradient sums are fp32 (fp64). The gradient is computed in the forward pass, over chunks of at
    most chunk_bytes of logits (one row at the least; None: by the device); the host never waits for the device.
    impl: auto, eager, native (C on a CPU; bf16, fp32), triton (bf16, fp16, fp32) or reference. auto is triton on CUDA,
    native on a CPU where a C compiler is found, else eager; a name never falls back.
    Flops: 2 N V D forward, 4 N V D more for the gradients.
    ValueError on any other shape, dtype or impl, and on CPU also on targets outside 0..V-1.
    """
    impl = choose_impl("cross_entropy", impl, x, IMPLS, "linear_cross_entropy")
    loss = _loss("linear_cross_entropy", logit_scale, softcap, label_smoothing, z_loss)
    chunk_bytes, targets, scored = _want_rows("linear_cross_entropy", x, weight, targets, chunk_bytes)
    if weights is None:
        factors = scored.to(state_dtype(x.dtype))
        weight_sum = factors.sum()
    else:
        want(
            "linear_cross_entropy",
            weights.shape == targets.shape and weights.is_floating_point() and not weights.requires_grad,
            f"weights float {list(targets.shape)} without gradient",
            f"{weights.dtype} {list(weights.shape)}, requires_grad={weights.requires_grad}",
            "detach them, or use linear_losses: this loss has no gradient to its weights",
        )
        weights = weights.masked_fill(~scored, 0)
        scored, weight_sum = scored & (weights != 0), weights.sum()
        factors = weights.to(state_dtype(x.dtype))
    if impl == "reference":
        return LossSum((reference.linear_losses(x, weight, targets, scored, loss) * factors).sum(), weight_sum)
    needs = (torch.is_grad_enabled() and x.requires_grad, torch.is_grad_enabled() and weight.requires_grad)
    options = loss.scale, loss.cap, loss.smoothing, loss.z, chunk_bytes, impl
    return LossSum(
        direct(registered.cross_entropy)(x, weight, targets, scored, factors, *options, *needs)[0], weight_sum
    )


def linear_losses(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """loss [N] fp32 (fp64) of every row, 0 where the target is -100; see linear_cross_entropy for the arguments.

    For losses that are no weighted sum, as in preference optimisation: the gradient that arrives may differ by row, and
    the backward computes the logits again, chunk by chunk, instead of keeping them. A row whose gradient is 0 adds
    exactly zero. Flops: 2 N V D forward, 6 N V D backward.
    """
    impl = choose_impl("cross_entropy", impl, x, IMPLS, "linear_losses")
    loss = _loss("linear_losses", logit_scale, softcap, label_smoothing, z_loss)
    chunk_bytes, targets, scored = _want_rows("linear_losses", x, weight, targets, chunk_bytes)
    if impl == "reference":
        return reference.linear_losses(x, weight, targets, scored, loss)
    options = loss.scale, loss.cap, loss.smoothing, loss.z, chunk_bytes, impl
    return direct(registered.losses)(x, weight, targets, scored, *options)[0]


@torch.no_grad()
def linear_scores(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    chunk_bytes: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """nll [N] fp32 (fp64 for fp64), and rank int64 [N]: how many logits strictly exceed the target's.

    The arguments of linear_cross_entropy, impl auto, eager or reference, targets in 0..V-1 only; no gradient. rank 0:
    the target is (one of) the most likely; top-k accuracy is (rank < k).mean(). ValueError as above.
    """
    impl = choose_impl("cross_entropy", impl, x, ("auto", "eager", "reference"), "linear_scores")
    loss = _loss("linear_scores", logit_scale, softcap, 0.0, 0.0)
    chunk_bytes, targets, _ = _want_rows("linear_scores", x, weight, targets, chunk_bytes, ignoring=False)
    if impl == "reference":
        return reference.linear_scores(x, weight, targets, loss)
    return chunks.linear_scores(x, weight, targets, loss, chunk_bytes)


def _loss(op: str, scale: float, cap: float, smoothing: float, z: float) -> Loss:
    facts = f"softcap {cap}, label_smoothing {smoothing}, z_loss {z}"
    holds = cap >= 0 and 0 <= smoothing < 1 and z >= 0
    want(op, holds, "softcap >= 0, 0 <= label_smoothing < 1, z_loss >= 0", facts, "0 turns each of them off")
    return Loss(scale=scale, cap=cap, smoothing=smoothing, z=z)


def _want_rows(
    op: str, x: Tensor, weight: Tensor, targets: Tensor, chunk_bytes: int | None, ignoring: bool = True
) -> tuple[int, Tensor, Tensor]:
    """Bytes of a chunk; targets with a valid id everywhere; and which rows have a target."""
    want(
        op,
        x.ndim == weight.ndim == 2 and x.shape[1] == weight.shape[1],
        "x [N, D] and weight [V, D]",
        f"x {list(x.shape)}, weight {list(weight.shape)}",
        "flatten rows and steps into N",
    )
    want_float(op, "x", x)
    same = x.dtype == weight.dtype and x.device == weight.device == targets.device
    facts = f"x {x.dtype} on {x.device}, weight {weight.dtype} on {weight.device}, targets on {targets.device}"
    want(op, same, "x and weight of one dtype, all on one device", facts, "convert the weight with .to(x.dtype)")
    want(
        op,
        targets.dtype == torch.int64 and tuple(targets.shape) == (x.shape[0],),
        f"targets int64 {[x.shape[0]]}",
        f"{targets.dtype} {list(targets.shape)}",
        "one class id per row of x",
    )
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(x.device.type, GPU_CHUNK_BYTES)
    want(op, chunk_bytes > 0, "chunk_bytes > 0", str(chunk_bytes), "leave it out")
    scored = targets != IGNORED if ignoring else torch.ones_like(targets, dtype=torch.bool)
    valid = targets.masked_fill(~scored, 0)
    if targets.device.type == "cpu" and len(targets) and not torch.compiler.is_compiling():
        low, high = (int(edge) for edge in valid.aminmax())
        V = weight.shape[0]
        fix = "give padding the target -100, or a valid id and weight 0" if ignoring else "score real targets only"
        want(op, low >= 0 and high < V, f"targets in 0..{V - 1}", f"{low}..{high}", fix)
    return chunk_bytes, valid, scored
