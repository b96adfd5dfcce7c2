from hotplate.kernels.attention.op import attention, self_attention
from hotplate.kernels.attention.tiles import Layout, layout

__all__ = ["Layout", "attention", "layout", "self_attention"]
