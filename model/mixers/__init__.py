"""Mixers by kind: each maps the normalised residual stream [B, T, D] to an update of it, with state in and out."""

from hotplate.model.config import ModelConfig
from hotplate.model.mixers.attention import Attention
from hotplate.model.mixers.recurrent import LSTM, DenseLSTM, DiagonalLSTM, QuasiLSTM

Mixer = Attention | QuasiLSTM | LSTM | DenseLSTM | DiagonalLSTM
KINDS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "qlstm": QuasiLSTM,
    "lstm": LSTM,
    "lstm_dense": DenseLSTM,
    "lstm_diagonal": DiagonalLSTM,
}


def build(config: ModelConfig) -> Mixer:
    """The mixer that `config.mixer.kind` names."""
    return KINDS[config.mixer.kind](config)
