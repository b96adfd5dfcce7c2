from hotplate.kernels.adamw.op import adamw

__all__ = ["adamw"]
