from hotplate.kernels.lstm_dense.op import lstm_dense
from hotplate.kernels.lstm_dense.torch_weights import LSTMWeights, import_torch_lstm

__all__ = ["LSTMWeights", "import_torch_lstm", "lstm_dense"]
