"""`hotplate speech`: synthetic speech, units, data sets of units, measures, and units back to sound."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from hotplate.train import console
from hotplate.train.commands.data import describe
from hotplate.train.data.units import UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.speech.audio import write_audio
from hotplate.train.speech.encoder import UnitEncoder, open_encoder, open_features
from hotplate.train.speech.evaluation import PairsConfig, evaluate_pairs
from hotplate.train.speech.extract import ExtractConfig, extract
from hotplate.train.speech.fitting import FitConfig, fit_codebook
from hotplate.train.speech.griffin_lim import resynthesise
from hotplate.train.speech.mel import HOP
from hotplate.train.speech.preferences import encode_preferences
from hotplate.train.speech.prepare import StoreConfig, prepare_units
from hotplate.train.speech.store import UnitFolder
from hotplate.train.speech.synthesis import SynthesisConfig, synthesise
from hotplate.train.speech.vocoder import UnitVocoder

Inputs = tyro.conf.Positional[tuple[str, ...]]
Out = Annotated[str, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class EncoderFlags:
    """Which units."""

    backend: str = "mel"
    """mel: log-mel cepstra, no weights; hubert: a local folder; phones: the recogniser of the package hama"""
    model: str | None = None
    """hubert: folder with config.json and model.safetensors"""
    layer: int = 11
    """hubert: block whose output is used"""
    codebook: str | None = None
    """centroids: a file of `hotplate speech fit`, or .npy [K, D]; none = the embedded one of mel"""
    device: str = "cpu"
    """hubert: cpu or cuda"""
    collapse: bool = True
    """equal neighbours become one unit with a duration"""

    def __post_init__(self) -> None:
        if self.backend not in ("mel", "hubert", "phones"):
            raise ValueError(f"backend: want mel, hubert or phones, got {self.backend!r}")

    def open(self) -> UnitEncoder:
        return open_encoder(self.backend, self.model, self.layer, self.codebook, self.device, self.collapse)


Encoder = Annotated[EncoderFlags, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Synthesise(SynthesisConfig):
    """Speak text with offline voices: wav files and word times."""

    source: tyro.conf.Positional[str]
    """a built-in corpus (sotu), a text file or a folder of them"""
    out: Out


@dataclass(frozen=True, kw_only=True)
class Fit(FitConfig):
    """Fit a codebook to audio."""

    audio: Inputs
    out: Out
    """the codebook to write, .safetensors"""
    encoder: Encoder = field(default_factory=EncoderFlags)


@dataclass(frozen=True, kw_only=True)
class Encode(ExtractConfig):
    """Turn audio files into units; a second call goes on where the first stopped."""

    audio: Inputs
    """audio files, and folders of them"""
    out: Out
    encoder: Encoder = field(default_factory=EncoderFlags)


@dataclass(frozen=True, kw_only=True)
class Prepare(StoreConfig):
    """Make a data set for `hotplate train --data.source` of folders of units."""

    units: Inputs
    out: Out


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Units for the triplets of a folder of `hotplate speech synthesise --kind swag`: one JSON object a line."""

    folder: tyro.conf.Positional[str]
    """holds preferences.jsonl and the audio that it names"""
    out: Out
    resample: bool = False
    encoder: Encoder = field(default_factory=EncoderFlags)


@dataclass(frozen=True, kw_only=True)
class Evaluate(PairsConfig):
    """How often a model finds the right one of two utterances likelier."""

    run: tyro.conf.Positional[str]
    """run or checkpoint folder"""
    json: str | None = None
    """also write the results to this file"""
    encoder: Encoder = field(default_factory=EncoderFlags)


@dataclass(frozen=True, kw_only=True)
class Play:
    """Make units audible: Griffin-Lim on the codebook's mel frames, or a local unit vocoder."""

    units: tyro.conf.Positional[str]
    """a folder of units, or - for units as numbers on the standard input"""
    out: Out
    """the wav file to write"""
    name: str | None = None
    """utterance of the folder; none = the first"""
    frames: int = 1
    """frames of each unit that has no duration (-)"""
    vocoder: str | None = None
    """folder with config.json and model.safetensors of a unit HiFi-GAN"""
    predict: bool = False
    """vocoder: predict the durations, even where they are known"""
    encoder: Encoder = field(default_factory=EncoderFlags)


Command = (
    Annotated[Synthesise, tyro.conf.subcommand("synthesise")]
    | Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Preferences, tyro.conf.subcommand("preferences")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Play, tyro.conf.subcommand("play")]
)


def main(arguments: list[str]) -> int:
    """Run one subcommand; an InputError is for the caller to print."""
    try:
        command = tyro.cli(Command, prog="hotplate speech", args=list(arguments))
    except ValueError as error:
        raise InputError(f"hotplate speech: {error}") from error
    match command:
        case Synthesise():
            _synthesise(command)
        case Fit():
            _fit(command)
        case Encode():
            _encode(command)
        case Prepare():
            dataset = prepare_units(command.units, Path(command.out), command)
            describe(dataset)
            for split, facts in dataset.manifest.source["durations"].items():
                console.say(f"{split:12} {facts['seconds']:,.1f} s, {facts['units_per_second']:.2f} units/s")
        case Preferences():
            count = encode_preferences(
                Path(command.folder), Path(command.out), command.encoder.open(), resample=command.resample
            )
            console.say(f"{count} triplets in {command.out}")
        case Evaluate():
            _evaluate(command)
        case Play():
            _play(command)
    return 0


def _synthesise(command: Synthesise) -> None:
    shown = Console(stderr=True)
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("speaking", total=None)
        count = synthesise(
            command.source, Path(command.out), command, lambda done: progress.update(task, completed=done)
        )
    console.say(f"{count} utterances in {command.out}")


def _fit(command: Fit) -> None:
    flags = command.encoder
    fitted = fit_codebook(command.audio, open_features(flags.backend, flags.model, flags.layer, flags.device), command)
    fitted.codebook.write(Path(command.out))
    for reason in fitted.failed:
        console.complain(f"left out: {reason}")
    console.say(
        f"{command.units} units from {fitted.frames:,} frames of {fitted.files} files ({fitted.seconds:,.1f} s), mean "
        f"squared distance {fitted.distortion:.4f}\ncodebook     {command.out}, {fitted.codebook.sha256}"
    )


def _encode(command: Encode) -> None:
    encoder = command.encoder.open()
    done = extract(command.audio, Path(command.out), encoder, command)
    for reason in done.failed:
        console.complain(f"left out: {reason}")
    rate = f", {done.units / done.seconds:.2f} units/s" if done.seconds else ""
    console.say(
        f"{done.files} files encoded ({done.seconds:,.1f} s, {done.units:,} units{rate}), {done.skipped} were done, "
        f"{len(done.failed)} failed\nfingerprint  {encoder.description.fingerprint}"
    )


def _evaluate(command: Evaluate) -> None:
    results = evaluate_pairs(Path(command.run), command.encoder.open(), command)
    columns = ["category", "pairs", "accuracy", "95% low", "high", "p of chance"]
    rows = [
        [name, str(r["pairs"]), *(f"{r[key]:.4f}" for key in ("accuracy", "low", "high")), f"{r['p_value']:.3g}"]
        for name, r in results["categories"].items()
    ]
    console.table(f"{command.run}, {command.pairs}", columns, rows)
    if command.json:
        Path(command.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _play(command: Play) -> None:
    encoder = command.encoder.open()
    units, durations = _units_of(command, encoder)
    if command.vocoder is not None:
        vocoder = UnitVocoder.open(Path(command.vocoder))
        wave = vocoder.speak(units, None if command.predict else durations)
        rate = vocoder.config.sampling_rate
    else:
        wave = resynthesise(encoder.codebook, units, durations, encoder.hop // HOP)
        rate = encoder.features.sample_rate
    write_audio(Path(command.out), wave, rate)
    console.say(f"{command.out}: {len(units)} units, {len(wave) / rate:.2f} s")


def _units_of(command: Play, encoder: UnitEncoder) -> tuple[np.ndarray, np.ndarray]:
    """int64 units and durations of what is to be played."""
    if command.units == "-":
        tokenizer = UnitTokenizer(Path("-"), encoder.description)
        units = tokenizer.units_of(tokenizer.encode(sys.stdin.read()))
        if not len(units):
            raise InputError("hotplate speech play -: no units on the standard input")
        return units, np.full(len(units), command.frames)
    folder = UnitFolder.open(Path(command.units))
    encoder.description.check_same(folder.description, command.units)
    for utterance in folder.utterances():
        if command.name in (None, utterance.name):
            return utterance.units.astype(np.int64), utterance.durations.astype(np.int64)
    raise InputError(f"{command.units}: no utterance {command.name!r}; it has names as of the audio files")
