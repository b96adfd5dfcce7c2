from hotplate.kernels.linear.op import linear

__all__ = ["linear"]
