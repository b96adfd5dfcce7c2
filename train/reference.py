"""Log-probabilities of preference pairs under the model that training starts from: two numbers a pair, computed once,
so that the reference model need not stay in memory."""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch

from hotplate.model.lm import LanguageModel
from hotplate.train.data.pairs import PairSource
from hotplate.train.errors import InputError

REFERENCE = "reference.safetensors"  # in the run folder


@torch.no_grad()
def reference_scores(model: LanguageModel, source: PairSource, rows: int) -> np.ndarray:
    """float32 [pairs, 2]: chosen, rejected; `rows` rows of the plan at a time."""
    device = model.embedding.weight.device
    scores = np.zeros((len(source.pairs), 2), np.float32)
    for first in range(0, source.plan_rows, rows):
        batch, numbers = source.of_rows(range(first, min(first + rows, source.plan_rows)))
        output = model(batch.to(device))
        scores[numbers] = output.scores.view(-1, 2).float().cpu().numpy()
    return scores


def save_reference(path: Path, scores: np.ndarray, fingerprint: str) -> None:
    """Written beside and renamed: complete or absent."""
    beside = path.with_suffix(".writing")
    safetensors.numpy.save_file({"scores": scores}, beside, {"pairs": fingerprint})
    beside.rename(path)


def load_reference(path: Path, fingerprint: str) -> np.ndarray:
    """InputError for a file that is damaged, or of other pairs."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            found, scores = (file.metadata() or {}).get("pairs"), file.get_tensor("scores")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}; remove it to have it computed again") from error
    if found != fingerprint:
        raise InputError(f"{path}: scores of other pairs than --preference.pairs names; use another --run.folder")
    return scores
