from hotplate.kernels.mlp.op import activation

__all__ = ["activation"]
