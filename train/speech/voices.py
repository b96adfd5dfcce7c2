"""Offline voices: text to a waveform and the times of its words.

flite and espeak-ng are called as programs; hibari and piper are Python packages with their voice inside. Names:
`flite:slt` (kal, kal16, awb, awb_time, rms, slt), `espeak:en-us` (any voice of espeak-ng, with variants such as
`en-us+f3`), `hibari` and `piper:joe`.
"""

import re
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hotplate.train.errors import InputError
from hotplate.train.speech.audio import SILENT, read_audio, resampled, soundfile

SAMPLE_RATE = 16_000
FLITE_VOICES = ("kal", "kal16", "awb", "awb_time", "rms", "slt")
STANDARD = ("flite:slt", "flite:rms", "flite:awb", "espeak:en-us", "hibari", "piper:joe")
ENGINES = ("flite", "espeak", "hibari", "piper")
SECONDS_LIMIT = 120  # for one utterance of an external program
PAUSE = "pau"


class Word(NamedTuple):
    """A word with the white space before it, and its place in seconds."""

    word: str
    start: float
    end: float


class Spoken(NamedTuple):
    """float32 `wave` at 16 kHz; `times` says whether `words` come from the synthesiser's own phones or are estimated
    from letters.
    """

    wave: np.ndarray
    words: list[Word]
    times: str  # aligned or estimated


def probe(voice: str) -> str | None:
    """None where `voice` can speak here, else why it cannot and what would mend that."""
    engine, _, name = voice.partition(":")
    if engine not in ENGINES:
        return f"voice {voice!r}: no such engine; want one of {', '.join(ENGINES)}"
    if engine == "flite" and name not in FLITE_VOICES:
        return f"voice {voice!r}: flite has {', '.join(FLITE_VOICES)}"
    programs = {"flite": "flite", "espeak": "espeak-ng"}
    if engine in programs and shutil.which(programs[engine]) is None:
        return f"voice {voice!r}: the program {programs[engine]} is not installed: apt-get install {programs[engine]}"
    try:
        if engine == "hibari":
            import_module("hibari")
        elif engine == "piper":
            import_module("piper")
            _piper_model(name)
    except (ImportError, InputError) as error:
        packages = {"hibari": "hibari-tts==0.2.1", "piper": f"piper-tts==1.8.0 {name}-us-piper-voice"}
        return f"voice {voice!r}: {error}: pip install {packages[engine]}"
    return None


def available(voices: tuple[str, ...]) -> tuple[str, ...]:
    """`voices`, each of which must be here; of none, the standard ones that are. InputError with every reason."""
    reasons = {voice: probe(voice) for voice in voices or STANDARD}
    problems = [reason for reason in reasons.values() if reason]
    if problems and (voices or len(problems) == len(reasons)):
        raise InputError("; ".join(problems) + "; or choose other --voices")
    return tuple(voice for voice, reason in reasons.items() if reason is None)


def speak(text: str, voice: str) -> Spoken:
    """`text` in `voice`. InputError: the voice is not here, or it produced nothing."""
    if reason := probe(voice):
        raise InputError(reason)
    text = " ".join(text.split())
    if not text:
        raise InputError(f"voice {voice}: no text to speak")
    engine, _, name = voice.partition(":")
    if engine == "flite":
        return _flite(text, name)
    if engine == "espeak":
        wave = _espeak(text, name or "en-us")
    elif engine == "hibari":
        wave = resampled(_hibari()(text, seed=0), 24_000, SAMPLE_RATE)
    else:
        wave = _piper(text, name)
    if not wave.size or np.abs(wave).max() < SILENT:
        raise InputError(f"voice {voice}: silence for the text {text[:60]!r}")
    return Spoken(wave, estimate_words(text, wave), "estimated")


def split_words(text: str) -> list[str]:
    """The words of `text`, each with the white space before it: they concatenate to the text."""
    return re.findall(r"\s*\S+", text)


def estimate_words(text: str, wave: np.ndarray) -> list[Word]:
    """Word times in proportion to letters over the part of `wave` (16 kHz) that is not silent at either end."""
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    begin, end = loud[0] / SAMPLE_RATE, (loud[-1] + 1) / SAMPLE_RATE
    words = split_words(text)
    sizes = np.array([1.0 + len(word.strip()) for word in words])
    edges = begin + (end - begin) * np.concatenate([[0], np.cumsum(sizes)]) / sizes.sum()
    return [Word(word, float(a), float(b)) for word, a, b in zip(words, edges[:-1], edges[1:], strict=True)]


def _flite(text: str, voice: str) -> Spoken:
    """flite reports its phones with their end times; a word has as many as when it is spoken alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.wav"
        phones = _flite_phones(text, voice, str(path))
        wave = read_audio(path, SAMPLE_RATE, resample=True)
    words = split_words(text)
    alone = _flite_phones(". ".join(re.sub(r"[^\w' ]", "", word).strip() for word in words) + ".", voice, "none")
    counts = [len(group) for group in _between_pauses(alone)]
    spoken = [phone for group in _between_pauses(phones) for phone in group]
    if len(counts) != len(words) or sum(counts) != len(spoken):
        return Spoken(wave, estimate_words(text, wave), "estimated")
    ends = np.cumsum(counts)
    return Spoken(
        wave,
        [Word(w, spoken[b - n][0], spoken[b - 1][1]) for w, n, b in zip(words, counts, ends, strict=True)],
        "aligned",
    )


def _flite_phones(text: str, voice: str, out: str) -> list[tuple[str, float, float]]:
    """(phone, start, end) in seconds."""
    printed = _run(["flite", "-voice", voice, "-psdur", "-t", text, "-o", out])
    ends = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", printed)]
    return [(name, before, end) for (name, end), before in zip(ends, [0.0, *(e for _, e in ends)], strict=False)]


def _between_pauses(phones: list[tuple[str, float, float]]) -> list[list[tuple[float, float]]]:
    groups: list[list[tuple[float, float]]] = [[]]
    for name, start, end in phones:
        if name == PAUSE:
            groups.append([])
        else:
            groups[-1].append((start, end))
    return [group for group in groups if group]


def _espeak(text: str, voice: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.wav"
        _run(["espeak-ng", "-v", voice, "-w", str(path), "--stdin"], text)
        if not path.exists() or path.stat().st_size == 0:
            raise InputError(f"espeak-ng wrote nothing; does it have the voice {voice!r}? see espeak-ng --voices")
        return read_audio(path, SAMPLE_RATE, resample=True)


@cache
def _hibari():
    return import_module("hibari").Hibari()


@cache
def _piper_voice(name: str):
    return import_module("piper").PiperVoice.load(str(_piper_model(name)))


def _piper_model(name: str) -> Path:
    package: Any = import_module(f"{name}_us_piper_voice")
    found = sorted((Path(str(package.__file__)).parent / "data").glob("*.onnx"))
    if not found:
        raise InputError(f"no .onnx model in {package.__file__}")
    return found[0]


def _piper(text: str, name: str) -> np.ndarray:
    chunks = list(_piper_voice(name).synthesize(text))
    if not chunks:
        raise InputError(f"piper:{name} produced nothing for {text[:60]!r}")
    wave = np.concatenate([chunk.audio_float_array for chunk in chunks])
    return resampled(wave, chunks[0].sample_rate, SAMPLE_RATE)


def _run(command: list[str], given: str | None = None) -> str:
    """What the program prints; text reaches it as one argument or on its input, never through a shell."""
    soundfile()
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS_LIMIT, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"{command[0]} failed: {getattr(error, 'stderr', '') or error}") from error
    return done.stdout
