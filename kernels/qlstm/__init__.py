from hotplate.kernels.qlstm.op import qlstm

__all__ = ["qlstm"]
