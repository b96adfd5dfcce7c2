"""Audio files to mono float32 and back, and speech segments by energy. Lengths L are samples."""

import math
from pathlib import Path

import numpy as np

from hotplate.train.errors import InputError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff")
SILENT = 1e-4  # a file whose largest sample is below this (-80 dB) holds nothing to encode

FRAME_SECONDS = 0.01
SPEECH_BELOW_PEAK_DB = 35.0  # quieter than the loud parts (95th percentile) by this much is silence
NOISE_MARGIN_DB = 6.0  # and so is what exceeds the noise floor (10th percentile) by less than this
SHORTEST_GAP_SECONDS = 0.3  # shorter silences stay inside a segment
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # beyond them no recording, and a filter of millions of taps
SHORTEST_SPEECH_SECONDS = 0.2
MARGIN_SECONDS = 0.1  # kept on both sides of a segment


def soundfile():
    """The library that reads and writes audio. InputError where it is not installed."""
    try:
        import soundfile as library
    except (ImportError, OSError) as error:
        raise InputError(f"audio needs soundfile ({error}): pip install 'hotplate[speech]'") from error
    return library


def read_audio(path: Path, sample_rate: int, resample: bool = False) -> np.ndarray:
    """float32 [L] at `sample_rate`, channels averaged.

    Raises InputError naming the file: unreadable, empty, not finite, silent, or of another rate without `resample`.
    """
    library = soundfile()
    try:
        wave, rate = library.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:  # soundfile's own errors are RuntimeErrors
        raise InputError(f"{path}: cannot read the audio: {error}") from error
    wave = wave.mean(axis=1)
    if not wave.size:
        raise InputError(f"{path}: no samples in it")
    if not np.isfinite(wave).all():
        raise InputError(f"{path}: damaged: sample {int(np.argmin(np.isfinite(wave)))} is not a finite number")
    if np.abs(wave).max() < SILENT:
        raise InputError(f"{path}: silent: no sample exceeds {SILENT:g} of full scale")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(f"{path}: damaged: {rate} Hz is no rate of {LOWEST_RATE} to {HIGHEST_RATE} Hz")
    if rate == sample_rate:
        return wave
    if not resample:
        raise InputError(f"{path}: {rate} Hz, want {sample_rate} Hz; pass --resample, or convert the file")
    return resampled(wave, rate, sample_rate)


def resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """`wave` [L] at another rate, band-limited (polyphase), float32."""
    if rate == wanted:
        return wave.astype(np.float32)
    from scipy.signal import resample_poly  # takes a second, and training imports this module

    shared = math.gcd(rate, wanted)
    return resample_poly(wave, wanted // shared, rate // shared).astype(np.float32)


def write_audio(path: Path, wave: np.ndarray, sample_rate: int) -> None:
    """16-bit wav, complete or not at all; samples beyond full scale are clipped."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile().write(partial, np.clip(wave, -1, 1), sample_rate, subtype="PCM_16", format="WAV")
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write the audio: {error}") from error


def audio_files(inputs: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name, file) of every audio file in the given files and folders, sorted; a name is the path inside its folder.

    InputError: nothing there, or two inputs that give the same name.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        root = Path(given)
        if not root.exists():
            raise InputError(f"{given}: no such file or folder")
        files = [root] if root.is_file() else (p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        for path in files:
            name = path.name if path == root else path.relative_to(root).as_posix()
            if name in found and found[name] != path:
                raise InputError(f"{path} and {found[name]} are both called {name!r}; encode them into two folders")
            found[name] = path
    if not found:
        raise InputError(f"{', '.join(inputs) or 'no input'}: no {', '.join(SUFFIXES)} files there")
    return sorted(found.items())


def speech_segments(wave: np.ndarray, sample_rate: int, longest: float) -> list[tuple[int, int]]:
    """[start, stop) samples of the speech in `wave`, each at most `longest` seconds: energy per 10 ms against a
    threshold, short gaps bridged, long stretches cut where they are quietest.
    """
    hop = round(FRAME_SECONDS * sample_rate)
    count = len(wave) // hop
    if count == 0:
        return [(0, len(wave))]
    power = np.square(wave[: count * hop].astype(np.float64)).reshape(count, hop).mean(axis=1)
    level = 10 * np.log10(power + 1e-12)
    floor, peak = np.percentile(level, [10, 95])
    speech = level > max(peak - SPEECH_BELOW_PEAK_DB, min(floor + NOISE_MARGIN_DB, peak - NOISE_MARGIN_DB))
    gap, shortest, margin = (
        round(seconds / FRAME_SECONDS) for seconds in (SHORTEST_GAP_SECONDS, SHORTEST_SPEECH_SECONDS, MARGIN_SECONDS)
    )
    runs: list[tuple[int, int]] = []
    for start, stop in _runs(speech):
        if runs and start - runs[-1][1] < gap:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    runs = [(max(0, a - margin), min(count, b + margin)) for a, b in runs if b - a >= shortest]
    parts = [part for run in runs for part in _cut(run, level, max(1, int(longest / FRAME_SECONDS)))]
    return [(a * hop, len(wave) if b == count else b * hop) for a, b in parts]


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _cut(run: tuple[int, int], level: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """The run in parts of at most `longest` frames; each cut is the quietest frame of the later half of the limit."""
    start, stop = run
    parts = []
    while stop - start > longest:
        begin = start + max(1, longest // 2)
        at = begin + int(level[begin : start + longest].argmin()) if longest > 1 else start + 1
        parts.append((start, at))
        start = at
    return [*parts, (start, stop)]
