"""Log-mel and cepstral features at 25 Hz, the embedded default: no weights, nothing but the waveform.

L samples at 16 kHz give N = floor(L / 640) frames, each the mean of four analysis frames of 10 ms.
"""

import numpy as np

SAMPLE_RATE = 16_000
HOP, WINDOW, FFT, MELS = 160, 400, 512, 64
PER_FRAME = 4  # analysis frames in one of 25 Hz
FRAME = HOP * PER_FRAME
CEPSTRA = 13
LOUDNESS = 0.05  # every utterance is scaled to this root mean square: units do not depend on the gain
FLOOR = 1e-5  # of mel power before the logarithm
DELTA_REACH = 2  # frames on each side of a time derivative


class MelFeatures:
    """Mel-frequency cepstra with first and second time derivatives, normalised per utterance: 39 features."""

    name = "mel"
    sample_rate = SAMPLE_RATE
    unit_seconds = FRAME / SAMPLE_RATE
    width = 3 * CEPSTRA
    weights_sha256 = ""
    options: dict = {"mels": MELS, "window": WINDOW, "cepstra": CEPSTRA, "loudness": LOUDNESS}

    def features(self, wave: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
        """wave float32 [B, L], length [B] -> float32 [floor(length / 640), 39] each."""
        return [cepstra(row[:samples]) for row, samples in zip(wave, length.tolist(), strict=True)]


def log_mel(wave: np.ndarray, per_frame: int = PER_FRAME) -> np.ndarray:
    """float64 [per_frame floor(L / (160 per_frame)), 64]: natural logarithm of mel power at the standard loudness."""
    frames = per_frame * (len(wave) // (HOP * per_frame))
    scaled = wave.astype(np.float64)
    scaled = scaled * (LOUDNESS / max(np.sqrt(np.mean(scaled**2)), 1e-12)) if len(wave) else scaled
    before = (WINDOW - HOP) // 2
    padded = np.concatenate([np.zeros(before), scaled, np.zeros(WINDOW)])
    slices = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: frames * HOP : HOP][:frames]
    spectrum = np.fft.rfft(slices * np.hanning(WINDOW + 2)[1:-1], FFT)
    return np.log(np.maximum(np.square(np.abs(spectrum)) @ mel_filters().T, FLOOR))


def mel_frames(wave: np.ndarray, per_frame: int = PER_FRAME) -> np.ndarray:
    """float32 [N, 64]: means of `log_mel` over `per_frame` analysis frames, what resynthesis needs for each unit."""
    mel = log_mel(wave, per_frame)
    return mel.reshape(-1, per_frame, MELS).mean(axis=1).astype(np.float32)


def cepstra(wave: np.ndarray) -> np.ndarray:
    """float32 [N, 39]: cepstra, their derivatives and second derivatives, each of mean 0 and deviation 1."""
    from scipy.fft import dct  # takes half a second, and training imports this module

    static = dct(log_mel(wave), norm="ortho", axis=1)[:, :CEPSTRA]
    first = _derivative(static)
    stacked = np.concatenate([static, first, _derivative(first)], axis=1)
    if len(stacked):
        stacked = (stacked - stacked.mean(axis=0)) / np.maximum(stacked.std(axis=0), 1e-6)
    return stacked.reshape(-1, PER_FRAME, 3 * CEPSTRA).mean(axis=1).astype(np.float32)


def mel_filters() -> np.ndarray:
    """float64 [64, 257]: triangles that overlap by half, evenly spaced in mel = 2595 log10(1 + f / 700)."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 1400), MELS + 2) / 2595) - 1)
    frequency = np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequency - left) / (centre - left), (right - frequency) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


def _derivative(x: np.ndarray) -> np.ndarray:
    """Slope of the regression line over 2 frames on each side; edges repeat."""
    if not len(x):
        return x
    padded = np.pad(x, ((DELTA_REACH, DELTA_REACH), (0, 0)), mode="edge")
    steps = range(1, DELTA_REACH + 1)
    ahead = sum(k * (padded[DELTA_REACH + k :][: len(x)] - padded[DELTA_REACH - k :][: len(x)]) for k in steps)
    return np.asarray(ahead) / (2 * sum(k * k for k in steps))
