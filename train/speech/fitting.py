"""A codebook from audio: k-means over a sample of frames, and the mean log-mel frame of each unit."""

from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hotplate.train.errors import InputError
from hotplate.train.speech import kmeans
from hotplate.train.speech.audio import audio_files, read_audio
from hotplate.train.speech.codebook import Codebook
from hotplate.train.speech.encoder import Features, fitted_on
from hotplate.train.speech.mel import HOP, MELS, SAMPLE_RATE, mel_frames


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a codebook is fitted."""

    units: int = 500
    """centroids"""
    frames: int = 200_000
    """most frames that the fit looks at, drawn evenly from all files"""
    seed: int = 0
    resample: bool = False
    """convert files of another sample rate; without it they are errors"""


@dataclass(frozen=True)
class Fitted:
    """A codebook, and what it was made from."""

    codebook: Codebook
    files: int
    seconds: float
    frames: int
    distortion: float  # mean squared distance of a frame to its centroid
    failed: list[str]


def fit_codebook(inputs: tuple[str, ...], features: Features, config: FitConfig) -> Fitted:
    """InputError: no usable audio, or fewer distinct frames than units."""
    files = audio_files(inputs)
    share = max(1, config.frames // len(files))  # frames kept of a file
    random = np.random.default_rng(config.seed)
    points, mels, failed, seconds = [np.zeros((0, features.width), np.float32)], [np.zeros((0, MELS))], [], 0.0
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for _, path in progress.track(files, description="reading"):
            try:
                wave = read_audio(path, features.sample_rate, config.resample)
            except InputError as error:
                failed.append(str(error))
                continue
            found = features.features(wave[None], np.array([len(wave)]))[0]
            kept = np.sort(random.permutation(len(found))[:share])
            points.append(found[kept])
            mels.append(_mel_of(wave, features)[kept])
            seconds += len(wave) / features.sample_rate
    data, mel = np.concatenate(points), np.concatenate(mels)
    try:
        centroids = kmeans.fit(data, config.units, config.seed)
    except ValueError as error:
        reason = f"; first of {len(failed)} unreadable files: {failed[0]}" if failed else ""
        raise InputError(f"hotplate speech fit: {error}; give more audio or fewer --units{reason}") from error
    nearest, distance = kmeans.assign(data, centroids)
    counts = np.bincount(nearest, minlength=config.units)
    sums = np.stack([np.bincount(nearest, weights=column, minlength=config.units) for column in mel.T], axis=1)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], mel.mean(axis=0))
    codebook = Codebook(centroids, means.astype(np.float32), fitted_on(features))
    return Fitted(codebook, len(files) - len(failed), seconds, len(data), float(distance.mean()), failed)


def _mel_of(wave: np.ndarray, features: Features) -> np.ndarray:
    """Log-mel frames at the rate of the features; both start together and have floor(L / hop) frames."""
    hop = round(features.unit_seconds * features.sample_rate)
    if features.sample_rate != SAMPLE_RATE or hop % HOP:
        raise InputError(
            f"backend {features.name}: resynthesis needs 16 kHz and frames of whole 10 ms, has {hop} samples"
        )
    return mel_frames(wave, hop // HOP)
