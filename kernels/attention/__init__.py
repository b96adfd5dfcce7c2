from hotplate.kernels.attention.op import attention
from hotplate.kernels.attention.tiles import Layout, layout

__all__ = ["Layout", "attention", "layout"]
