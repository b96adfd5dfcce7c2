from hotplate.kernels.linear.op import linear, multiply

__all__ = ["linear", "multiply"]
