"""Units of many audio files: in parts, resumable, several processes or machines side by side.

A bad file is reported and left out; a later call tries it again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hotplate.train.errors import InputError
from hotplate.train.speech.audio import audio_files, read_audio, speech_segments
from hotplate.train.speech.encoder import UnitEncoder, Units
from hotplate.train.speech.store import UnitFolder


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How audio becomes units."""

    resample: bool = False
    """convert files of another sample rate; without it they are errors"""
    vad: bool = False
    """cut files into stretches of speech; silence between them is dropped"""
    longest: float = 30.0
    """seconds: segments are at most this long; a longer file without --vad is an error"""
    batch_seconds: float = 60.0
    """audio encoded together, padding included"""
    files_per_shard: int = 512
    """audio files in one shard of units: what a killed run loses at most"""
    shard: str = "0/1"
    """I/N: encode only the I-th of N parts of the files, by a hash of their names"""

    def __post_init__(self) -> None:
        if self.longest < 1 or self.batch_seconds <= 0 or self.files_per_shard < 1:
            raise ValueError("want longest >= 1 s, batch-seconds > 0 and files-per-shard >= 1")
        index, count = self.part
        if not 0 <= index < count:
            raise ValueError(f"shard: want I/N with 0 <= I < N, got {self.shard!r}")

    @property
    def part(self) -> tuple[int, int]:
        index, slash, count = self.shard.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ValueError(f"shard: want I/N, got {self.shard!r}")
        return int(index), int(count)


@dataclass
class Extracted:
    """What one call did."""

    files: int = 0
    skipped: int = 0  # done before
    seconds: float = 0.0
    units: int = 0
    failed: list[str] = field(default_factory=list)  # reasons, each naming its file


def extract(inputs: tuple[str, ...], out: Path, encoder: UnitEncoder, config: ExtractConfig) -> Extracted:
    """Encode every audio file of `inputs` that `out` does not have yet. InputError when all files fail."""
    folder = UnitFolder.create(out, encoder.description)
    done = folder.done()
    index, count = config.part
    mine = [(name, path) for name, path in audio_files(inputs) if crc32(name.encode()) % count == index]
    todo = [(name, path) for name, path in mine if name not in done]
    report = Extracted(skipped=len(mine) - len(todo))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("encoding", total=len(todo))
        for start in range(0, len(todo), config.files_per_shard):
            group = todo[start : start + config.files_per_shard]
            _extract_group(folder, f"{index}of{count}", group, encoder, config, report)
            progress.advance(task, len(group))
    if report.failed and not report.files and not report.skipped:
        more = f" (and {len(report.failed) - 1} more)" if len(report.failed) > 1 else ""
        raise InputError(f"no file could be encoded: {report.failed[0]}{more}")
    return report


def _extract_group(
    folder: UnitFolder, label: str, group: list[tuple[str, Path]], encoder: UnitEncoder, config: ExtractConfig, report
) -> None:
    clips: list[tuple[str, np.ndarray]] = []
    files = []
    for name, path in group:
        try:
            clips += _clips(name, path, encoder, config)
            files.append(name)
        except InputError as error:
            report.failed.append(str(error))
    if not files:
        return
    found: dict[str, Units] = {}
    for batch in _batches(clips, config.batch_seconds * encoder.features.sample_rate):
        length = np.array([len(wave) for _, wave in batch])
        padded = np.zeros((len(batch), length.max()), np.float32)
        for row, (_, wave) in zip(padded, batch, strict=True):
            row[: len(wave)] = wave
        found |= dict(zip([name for name, _ in batch], encoder.encode(padded, length), strict=True))
    folder.write(label, files, [(name, found[name]) for name, _ in clips])
    report.files += len(files)
    report.seconds += sum(len(wave) for _, wave in clips) / encoder.features.sample_rate
    report.units += sum(len(each.units) for each in found.values())


def _clips(name: str, path: Path, encoder: UnitEncoder, config: ExtractConfig) -> list[tuple[str, np.ndarray]]:
    """The parts of a file that are encoded by themselves, with their names."""
    rate = encoder.features.sample_rate
    wave = read_audio(path, rate, config.resample)
    if config.vad:
        spans = speech_segments(wave, rate, config.longest)
        clips = [(f"{name}#{a / rate:.3f}-{b / rate:.3f}", wave[a:b]) for a, b in spans if b - a >= encoder.hop]
        if not clips:
            raise InputError(f"{path}: no speech found in {len(wave) / rate:.2f} s")
        return clips
    if len(wave) > config.longest * rate:
        seconds = len(wave) / rate
        raise InputError(f"{path}: {seconds:.1f} s exceed --longest {config.longest:g}; cut it with --vad")
    if len(wave) < encoder.hop:
        raise InputError(f"{path}: {len(wave)} samples are shorter than one frame of {encoder.hop}")
    return [(name, wave)]


def _batches(clips: list[tuple[str, np.ndarray]], samples: float) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Clips longest first, as many together as fit into `samples` with padding."""
    batch: list[tuple[str, np.ndarray]] = []
    for clip in sorted(clips, key=lambda clip: (-len(clip[1]), clip[0])):
        if batch and len(batch[0][1]) * (len(batch) + 1) > samples:
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch
