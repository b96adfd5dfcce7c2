from hotplate.kernels.cross_entropy.op import (
    IGNORED,
    LossSum,
    linear_cross_entropy,
    linear_losses,
    linear_scores,
)

__all__ = ["IGNORED", "LossSum", "linear_cross_entropy", "linear_losses", "linear_scores"]
