from hotplate.kernels.layernorm.op import add_layernorm, layernorm

__all__ = ["add_layernorm", "layernorm"]
