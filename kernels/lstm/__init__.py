from hotplate.kernels.lstm.op import lstm

__all__ = ["lstm"]
