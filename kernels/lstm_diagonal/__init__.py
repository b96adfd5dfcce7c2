from hotplate.kernels.lstm_diagonal.op import lstm_diagonal

__all__ = ["lstm_diagonal"]
