from hotplate.kernels.rmsnorm.op import add_rmsnorm, rmsnorm

__all__ = ["add_rmsnorm", "rmsnorm"]
