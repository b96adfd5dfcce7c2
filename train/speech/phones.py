"""A phone recogniser as a backend, where the package hama is installed: its frame-wise phones are the units.

A frame of 20 ms has the phone that the recogniser emitted last; before the first one, the word boundary. The features
are one-hot, so that the codebook is the identity.
"""

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hotplate.train.errors import InputError

HOP = 320
WEIGHTS = "assets/asr_waveform.hama"


class PhoneFeatures:
    """hama's phones (Apache-2.0, `pip install hama==1.7.0`): supervised, one clip at a time."""

    name = "phones"
    sample_rate = 16_000
    unit_seconds = HOP / 16_000
    options: dict[str, Any] = {"recogniser": "hama", "blank": "previous phone"}

    def __init__(self) -> None:
        try:
            package = import_module("hama")
            recogniser = package.ASRModel()
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                f"--backend phones: no phone recogniser here ({error}): pip install hama==1.7.0, or use --backend mel"
            ) from error
        weights = Path(str(package.__file__)).parent / WEIGHTS
        self.weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        self._recogniser = recogniser
        self._blank = recogniser.blank_id
        self._boundary = recogniser.decoder_tokens.index("<wb>")
        self.width = len(recogniser.decoder_tokens)

    def features(self, wave: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
        """wave float32 [B, L], length [B] -> one-hot float32 [floor(length / 320), width] each."""
        return [self._one_hot(row[:samples]) for row, samples in zip(wave, length.tolist(), strict=True)]

    def _one_hot(self, wave: np.ndarray) -> np.ndarray:
        frames = len(wave) // HOP
        emitted = np.array(self._recogniser(wave, self.sample_rate).frame_token_ids[:frames], np.int64)
        emitted = np.pad(emitted, (0, frames - len(emitted)), constant_values=self._blank)
        last = np.maximum.accumulate(np.where(emitted != self._blank, np.arange(frames), -1))
        phones = np.where(last >= 0, emitted[last], self._boundary)
        return np.eye(self.width, dtype=np.float32)[phones]
