from hotplate.kernels.attention.tiles import Layout, layout
from hotplate.kernels.attention.op import attention

__all__ = ["Layout", "attention", "layout"]
