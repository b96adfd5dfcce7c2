from hotplate.kernels.cross_entropy.op import linear_cross_entropy, linear_scores

__all__ = ["linear_cross_entropy", "linear_scores"]
