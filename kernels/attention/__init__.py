from hotplate.kernels.attention.op import attention

__all__ = ["attention"]
