"""Speech to text, for measures of what a model says: a recogniser of a package, or any program."""

import shlex
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from hotplate.train.errors import InputError
from hotplate.train.speech.audio import write_audio

SAMPLE_RATE = 16_000
COMMAND = "command:"
SECONDS_LIMIT = 600  # for one file of a program


class Recogniser(Protocol):
    """`transcribe(wave float32 [L] at 16 kHz)` gives the text, empty where nothing was understood."""

    def transcribe(self, wave: np.ndarray) -> str: ...


class PocketSphinx:
    """CMU Sphinx with the English model of its package (BSD, `pip install pocketsphinx==5.1.1`)."""

    def __init__(self) -> None:
        try:
            package = import_module("pocketsphinx")
        except ImportError as error:
            raise InputError(
                f"--recogniser pocketsphinx: {error}: pip install pocketsphinx==5.1.1, or 'command:PROGRAM'"
            ) from error
        self._decoder = package.Decoder(loglevel="FATAL")

    def transcribe(self, wave: np.ndarray) -> str:
        if not wave.size:
            return ""
        peak = max(float(np.abs(wave).max()), 1e-9)
        samples = (wave / peak * 0.9 * 32767).astype("<i2")
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return "" if found is None else found.hypstr.strip()


class Program:
    """A program that is given a wav file (16 kHz, 16 bit) as its last argument and prints the text."""

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        if not self._command:
            raise InputError("--recogniser command: want a program after the colon")

    def transcribe(self, wave: np.ndarray) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speech.wav"
            write_audio(path, wave, SAMPLE_RATE)
            command = [*self._command, str(path)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_LIMIT, check=True)
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", "") or "").strip()
                raise InputError(f"--recogniser {self._command[0]}: {error} {said}".strip()) from error
        return " ".join(done.stdout.split())


def open_recogniser(name: str) -> Recogniser:
    """pocketsphinx, or command:PROGRAM. InputError for another name, or one that is not here."""
    if name == "pocketsphinx":
        return PocketSphinx()
    if name.startswith(COMMAND):
        return Program(name.removeprefix(COMMAND))
    raise InputError(f"--recogniser {name!r}: want pocketsphinx, or command:PROGRAM")
