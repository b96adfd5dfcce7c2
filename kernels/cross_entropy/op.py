"""Output projection and cross entropy in one operation: contract, checks and the choice of implementation.

Letters: N targets, D width, V vocabulary.
"""

import torch
from torch import Tensor

from hotplate.kernels.checks import choose, want, want_float
from hotplate.kernels.cross_entropy import eager, reference

CHUNK_BYTES = 64 << 20  # of logits: many rows per product on a GPU, little beside the weight and its gradient
LOSSES = {"eager": eager.linear_cross_entropy, "reference": reference.linear_cross_entropy}
SCORES = {"eager": eager.linear_scores, "reference": reference.linear_scores}


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    logit_scale: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
    impl: str = "auto",
) -> Tensor:
    """loss_sum = sum_n weights_n nll_n, nll_n = -log softmax(logit_scale x_n weight^T)[targets_n].

    x [N, D] and weight [V, D] of one dtype (bf16|fp16|fp32|fp64), targets int64 [N] in 0..V-1 also where the
    weight is 0, weights float [N] or None = ones. A row of weight 0 adds exactly zero to loss and gradients,
    whatever it holds. Returns a scalar, fp32 (fp64 for fp64). Gradients to x and weight, none to weights.
    Logits, softmax and gradient sums are fp32 (fp64). The gradient is computed in the forward pass, over
    chunks of at most chunk_bytes of logits (one row at the least); the host never waits for the device.
    Flops: 2 N V D forward, 4 N V D more for the gradients.
    ValueError on any other shape, dtype or impl, and on CPU also on targets outside 0..V-1.
    """
    function = choose("linear_cross_entropy", impl, LOSSES)
    _want_rows("linear_cross_entropy", x, weight, targets, chunk_bytes)
    if weights is not None:
        want(
            "linear_cross_entropy",
            weights.shape == targets.shape and weights.is_floating_point() and not weights.requires_grad,
            f"weights float {list(targets.shape)} without gradient",
            f"{weights.dtype} {list(weights.shape)}, requires_grad={weights.requires_grad}",
            "detach them: the loss has no gradient to its weights",
        )
    return function(x, weight, targets, weights, logit_scale, chunk_bytes)


@torch.no_grad()
def linear_scores(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    logit_scale: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """nll [N] fp32 (fp64 for fp64), and rank int64 [N]: how many logits strictly exceed the target's.

    x, weight, targets, logit_scale and chunk_bytes as in linear_cross_entropy; no gradient. rank 0: the
    target is (one of) the most likely; top-k accuracy is (rank < k).mean(). ValueError as above.
    """
    function = choose("linear_scores", impl, SCORES)
    _want_rows("linear_scores", x, weight, targets, chunk_bytes)
    return function(x, weight, targets, logit_scale, chunk_bytes)


def _want_rows(op: str, x: Tensor, weight: Tensor, targets: Tensor, chunk_bytes: int) -> None:
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
    want(
        op,
        same,
        "x and weight of one dtype, all on one device",
        facts,
        "convert the weight with .to(x.dtype)",
    )
    want(
        op,
        targets.dtype == torch.int64 and tuple(targets.shape) == (x.shape[0],),
        f"targets int64 {[x.shape[0]]}",
        f"{targets.dtype} {list(targets.shape)}",
        "one class id per row of x",
    )
    want(op, chunk_bytes > 0, "chunk_bytes > 0", str(chunk_bytes), "leave it out")
    if targets.device.type == "cpu" and len(targets):
        low, high = (int(edge) for edge in targets.aminmax())
        V = weight.shape[0]
        want(
            op,
            low >= 0 and high < V,
            f"targets in 0..{V - 1}",
            f"{low}..{high}",
            "give padding a valid id, weight 0",
        )
