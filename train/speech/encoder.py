"""One interface from waveforms to units, whatever the features are.

B waveforms in a batch, L samples, N frames, U units. A backend gives features; the nearest centroid of its codebook is
a frame's unit; equal neighbours are collapsed and their number kept as the duration.
"""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from hotplate.train.data.units import UnitDescription
from hotplate.train.errors import InputError
from hotplate.train.speech.codebook import EMBEDDED, Codebook
from hotplate.train.speech.hubert import HubertFeatures
from hotplate.train.speech.kmeans import assign
from hotplate.train.speech.mel import MelFeatures
from hotplate.train.speech.phones import PhoneFeatures


class Features(Protocol):
    """A backend. `features(wave float32 [B, L], length int64 [B])` gives float32 [floor(length / hop), width] each,
    which must not depend on the other waveforms of the batch.
    """

    name: str
    sample_rate: int
    unit_seconds: float
    width: int
    weights_sha256: str
    options: dict[str, Any]

    def features(self, wave: np.ndarray, length: np.ndarray) -> list[np.ndarray]: ...


class Units(NamedTuple):
    """An utterance: `units` uint16 [U], no two neighbours equal if collapsed; `durations` uint16 [U] in frames."""

    units: np.ndarray
    durations: np.ndarray


class UnitEncoder:
    """`encode(wave, length)` -> units and durations; `description` says what they mean and has the fingerprint."""

    def __init__(self, features: Features, codebook: Codebook, collapse: bool = True):
        self.features, self.codebook, self.collapse = features, codebook, collapse
        count, width = codebook.centroids.shape
        if width != features.width:
            raise InputError(f"codebook: its centroids have {width} features, backend {features.name} {features.width}")
        fitted = codebook.features
        if fitted is not None and fitted != fitted_on(features):
            raise InputError(
                f"codebook: fitted on {fitted}, but the features are {fitted_on(features)}; "
                "fit one with `hotplate speech fit`, or encode with the backend it belongs to"
            )
        if count > 1 << 16:
            raise InputError(f"codebook: {count:,} units, want at most 65,536")
        self.description = UnitDescription(
            backend=features.name,
            units=count,
            unit_seconds=features.unit_seconds,
            sample_rate=features.sample_rate,
            weights_sha256=features.weights_sha256,
            codebook_sha256=codebook.sha256,
            options={**features.options, "collapse": collapse},
        )

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return round(self.features.unit_seconds * self.features.sample_rate)

    def encode(self, wave: np.ndarray, length: np.ndarray) -> list[Units]:
        """Units of each waveform. wave float32 [B, L], samples beyond `length` [B] are not looked at.

        InputError for a waveform shorter than one frame.
        """
        if wave.ndim != 2 or length.shape != wave.shape[:1] or length.max() > wave.shape[1]:
            raise ValueError(f"encode: want wave [B, L] and length [B] <= L, got {wave.shape} and {length}")
        if length.min() < self.hop:
            raise InputError(f"{length.min()} samples are shorter than one frame of {self.hop}")
        found = self.features.features(wave, length)
        frames = [assign(each, self.codebook.centroids)[0] for each in found]
        return [collapse(units) if self.collapse else Units(units.astype(np.uint16), _ones(units)) for units in frames]

    def encode_one(self, wave: np.ndarray) -> Units:
        """Units of one waveform [L]."""
        return self.encode(wave[None], np.array([len(wave)]))[0]


def collapse(frames: np.ndarray) -> Units:
    """Runs of equal frames (int64 [N]) as one unit each. InputError for a run that 16 bits cannot count."""
    starts = np.flatnonzero(np.diff(frames, prepend=-1))
    durations = np.diff(starts, append=len(frames))
    if durations.size and durations.max() >= 1 << 16:
        raise InputError(f"one unit lasts {durations.max():,} frames, want below 65,536; cut the audio with --vad")
    return Units(frames[starts].astype(np.uint16), durations.astype(np.uint16))


def fitted_on(features: Features) -> dict[str, Any]:
    """What a codebook remembers of the features it was fitted on."""
    return {"backend": features.name, "weights_sha256": features.weights_sha256, "options": features.options}


def open_features(backend: str, model: str | None, layer: int, device: str) -> Features:
    """The backend by name: mel, hubert (a local folder `model` and a layer) or phones."""
    if backend == "mel":
        return MelFeatures()
    if backend == "phones":
        return PhoneFeatures()
    if model is None:
        raise InputError("--backend hubert: want --model FOLDER with config.json and model.safetensors")
    return HubertFeatures.open(Path(model), layer, device)


def open_encoder(
    backend: str = "mel",
    model: str | None = None,
    layer: int = 11,
    codebook: str | None = None,
    device: str = "cpu",
    collapse: bool = True,
) -> UnitEncoder:
    """An encoder from flags. `codebook` None: the embedded one of mel; phones are their own."""
    features = open_features(backend, model, layer, device)
    if codebook is not None:
        return UnitEncoder(features, Codebook.read(Path(codebook)), collapse)
    if isinstance(features, PhoneFeatures):
        return UnitEncoder(features, Codebook(np.eye(features.width, dtype=np.float32), None, None), collapse)
    if backend != "mel":
        raise InputError(f"--backend {backend}: want --codebook FILE; `hotplate speech fit` makes one")
    return UnitEncoder(features, Codebook.read(EMBEDDED), collapse)


def _ones(units: np.ndarray) -> np.ndarray:
    return np.ones(len(units), np.uint16)
