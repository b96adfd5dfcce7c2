"""A trained model from a run folder or checkpoint, for everything that only reads it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel
from hotplate.train import checkpoint
from hotplate.train.config import TrainConfig
from hotplate.train.data.dataset import Dataset
from hotplate.train.errors import InputError
from hotplate.train.settings import merge


@dataclass(frozen=True)
class Trained:
    """Weights in fp32, and what they were trained with."""

    model: LanguageModel
    config: TrainConfig
    step: int
    tokenizer: str  # sha256 of the tokeniser file; empty where an imported model came without one

    def check_tokenizer(self, dataset: Dataset) -> None:
        """InputError when `dataset` was cut with another tokeniser."""
        if self.tokenizer and dataset.tokenizer.fingerprint != self.tokenizer:
            raise InputError(
                f"the model was trained with tokeniser {self.tokenizer[:16]}, the data set has "
                f"{dataset.tokenizer.fingerprint[:16]}; prepare the data with --tokenizer of the model's data set"
            )


def load_trained(path: Path, device: torch.device) -> Trained:
    """The model in the run folder or checkpoint `path`. InputError for anything missing, damaged or foreign."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device here; use --device cpu")
    found = checkpoint.find(path)
    weights, facts = found.model, found.trainer
    config = merge(TrainConfig(), facts["config"], f"{path}: trainer.json: config")
    config = replace(config, model=merge(ModelConfig(), facts["model"], f"{path}: trainer.json: model"))
    model = LanguageModel.build(config.model, seed=0)
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit the config saved with them: {error}") from error
    return Trained(model.to(device), config, int(facts["step"]), facts["tokenizer"])
