"""Units back to sound without any weights: mean log-mel frames of the units, then Griffin and Lim's phase recovery.

Source: Griffin and Lim 1984; the acceleration is Perraudin, Balazs and Sondergaard 2013.
"""

from typing import Any

import numpy as np
import torch

from hotplate.train.errors import InputError
from hotplate.train.speech.codebook import Codebook
from hotplate.train.speech.mel import FFT, HOP, LOUDNESS, WINDOW, mel_filters

MOMENTUM = 0.99


def unit_mel(codebook: Codebook, units: np.ndarray, durations: np.ndarray, per_frame: int) -> np.ndarray:
    """float64 [per_frame sum(durations), M] log-mel, moved smoothly from unit to unit.

    InputError for a codebook that has no mel frames; ValueError for units outside it.
    """
    if codebook.mel is None:
        raise InputError("this codebook holds no mel frames; make one with `hotplate speech fit` on the same features")
    if len(units) != len(durations) or len(units) == 0 or units.max() >= len(codebook.mel):
        raise ValueError(f"unit_mel: want units below {len(codebook.mel)} with one duration each, got {len(units)}")
    frames = np.repeat(codebook.mel[units].astype(np.float64), durations, axis=0)
    places = (np.arange(len(frames) * per_frame) + 0.5) / per_frame - 0.5
    before = np.clip(np.floor(places).astype(np.int64), 0, len(frames) - 1)
    after = np.minimum(before + 1, len(frames) - 1)
    weight = np.clip(places - before, 0, 1)[:, None]
    return (1 - weight) * frames[before] + weight * frames[after]


def griffin_lim(mel: np.ndarray, iterations: int = 60, seed: int = 0) -> np.ndarray:
    """float32 [160 N] waveform at 16 kHz whose mel power is near exp(mel), mel [N, M]."""
    power = np.maximum(np.exp(mel) @ np.linalg.pinv(mel_filters()).T, 0)
    magnitude = torch.from_numpy(np.sqrt(power).T.copy())
    window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
    length = HOP * len(mel)
    options: dict[str, Any] = {"n_fft": FFT, "hop_length": HOP, "win_length": WINDOW, "window": window}
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.cat([magnitude, magnitude[:, -1:]], dim=1)  # centred frames: one more than hops
    angles = torch.rand(magnitude.shape, dtype=torch.float64, generator=generator) * 2 * torch.pi
    spectrum, before = torch.polar(magnitude, angles), torch.zeros((), dtype=torch.complex128)
    for _ in range(iterations):
        wave = torch.istft(spectrum, length=length, **options)
        rebuilt = torch.stft(wave, return_complex=True, pad_mode="constant", **options)
        pushed = rebuilt + MOMENTUM * (rebuilt - before)
        before = rebuilt
        spectrum = magnitude * pushed / pushed.abs().clamp_min(1e-12)
    sound = torch.istft(spectrum, length=length, **options).numpy()
    return (sound * (LOUDNESS / max(float(np.sqrt(np.mean(sound**2))), 1e-12))).astype(np.float32)


def resynthesise(codebook: Codebook, units: np.ndarray, durations: np.ndarray, per_frame: int) -> np.ndarray:
    """float32 waveform at 16 kHz of an utterance of units."""
    return griffin_lim(unit_mel(codebook, units, durations, per_frame))
