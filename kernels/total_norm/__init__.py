from hotplate.kernels.total_norm.op import total_norm

__all__ = ["total_norm"]
