"""Invented speech: vowels of two formants and bursts of noise, so that no synthesiser is needed."""

import numpy as np

RATE = 16_000
VOWELS = ((730, 1090), (270, 2290), (300, 870), (530, 1840), (660, 1720))


def babble(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """float32 waveform of syllables between short pauses."""
    random = np.random.default_rng(seed)
    parts, pitch = [], float(random.uniform(90, 220))
    while sum(map(len, parts)) < seconds * rate:
        time = np.arange(int(rate * random.uniform(0.08, 0.25))) / rate
        formants = VOWELS[int(random.integers(len(VOWELS)))]
        tone = sum(np.sin(2 * np.pi * round(f / pitch) * pitch * time) for f in (pitch, *formants))
        noise = random.standard_normal(int(rate * random.uniform(0.02, 0.08)))
        parts += [0.1 * tone * np.hanning(len(time)), 0.03 * noise, np.zeros(int(rate * random.uniform(0, 0.05)))]
    wave = np.concatenate(parts)[: int(seconds * rate)]
    return (wave + 1e-4 * random.standard_normal(len(wave))).astype(np.float32)
