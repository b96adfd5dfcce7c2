"""A norm of rows, with the residual sum before it, by the name of its form.

Letters: M rows, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import operator, power_of_2

# The module that registers a form's operator, and the operator's name; triton's is imported when it is asked for.
OPERATORS = {
    "native": ("hotplate.kernels.norm.native", "norm_native"),
    "triton": ("hotplate.kernels.norm.streaming", "norm"),
}
MAX_D = 8192  # one Triton program holds a whole row in registers


def check(room: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    """ValueError unless the arguments fit each other."""
    want_float(room, "x", x)
    want(room, x.ndim > 0 and x.shape[-1] > 0, "x [..., D >= 1]", str(list(x.shape)), "the last axis is normalised")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            facts = f"{vector.dtype} {list(vector.shape)} on {vector.device}"
            holds = vector.shape == x.shape[-1:] and vector.is_floating_point() and vector.device == x.device
            want(room, holds, f"{name} float [{x.shape[-1]}] on {x.device}", facts, "one value per feature")
    if residual is not None:
        same = residual.shape == x.shape and residual.dtype == x.dtype and residual.device == x.device
        facts = f"{residual.dtype} {list(residual.shape)} on {residual.device}"
        want(room, same, f"a residual {x.dtype} {list(x.shape)} on {x.device}", facts, "it is added to x")
    want(room, eps >= 0, "eps >= 0", str(eps), "leave it out")


def _eager(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """torch's own norms; where x is narrower than the weights they compute at the weights' width."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    weight = weight.to(wide)
    if bias is None:
        y = F.rms_norm(x.to(wide), x.shape[-1:], weight, eps)
    else:
        y = F.layer_norm(x.to(wide), x.shape[-1:], weight, bias.to(wide), eps)
    return y.to(x.dtype)


def apply(
    room: str, impl: str, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum); without a residual the second is x."""
    if impl == "eager":
        total = x if residual is None else x + residual
        return _eager(total, weight, bias, eps), total
    D = x.shape[-1]
    if impl == "triton":
        want(room, power_of_2(D) <= MAX_D, f"D <= {MAX_D} with impl='triton'", str(D), "use impl='eager'")
    rows = [None if t is None else t.reshape(-1, D).contiguous() for t in (x, residual)]
    y, total, _ = operator(*OPERATORS[impl])(*rows, weight, bias, eps)
    return y.view(x.shape), x if residual is None else total.view(x.shape)
