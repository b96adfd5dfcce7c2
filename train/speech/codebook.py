"""The centroids that turn features into units, with what they were fitted on, in one safetensors file.

K units, D features, M mel bands.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

SHIPPED = Path(__file__).parent / "codebooks"
EMBEDDED = SHIPPED / "mel-100.safetensors"  # fitted on synthetic speech: see the .json beside it


@dataclass(frozen=True)
class Codebook:
    """`centroids` float32 [K, D]; `mel` float32 [K, M], the mean log-mel frame of each unit, or None; `features`: what
    the centroids were fitted on (backend, weights_sha256, options), None for centroids from elsewhere.
    """

    centroids: np.ndarray
    mel: np.ndarray | None
    features: dict[str, Any] | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.centroids, "<f4").tobytes()).hexdigest()

    def write(self, path: Path) -> None:
        tensors = {"centroids": self.centroids.astype(np.float32)}
        if self.mel is not None:
            tensors["mel"] = self.mel.astype(np.float32)
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"features": json.dumps(self.features, sort_keys=True)})
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Codebook":
        """A file of `write`, or centroids alone as .npy [K, D]. InputError: unreadable, wrong shape, not finite."""
        try:
            if path.suffix == ".npy":
                codebook = cls(np.load(path), None, None)
            else:
                with safe_open(path, framework="numpy") as file:
                    names = set(file.keys())
                    mel = file.get_tensor("mel") if "mel" in names else None
                    features = parse_json((file.metadata() or {}).get("features", "null"))
                    codebook = cls(file.get_tensor("centroids"), mel, features)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"{path}: cannot read the codebook: {error}; want safetensors of `hotplate speech fit`, or .npy [K, D]"
            ) from error
        shape = codebook.centroids.shape
        if len(shape) != 2 or not np.isfinite(codebook.centroids).all():
            raise InputError(f"{path}: want finite centroids [K, D], got shape {shape}")
        return codebook
