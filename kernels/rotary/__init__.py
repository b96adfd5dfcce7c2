from hotplate.kernels.rotary.op import Rotation, cut_heads, rotation

__all__ = ["Rotation", "cut_heads", "rotation"]
