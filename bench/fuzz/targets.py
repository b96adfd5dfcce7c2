"""Every parser of files that is ours: what it is given, and a few files that it accepts, to start from.

A parser may accept a file or raise InputError; anything else it does is a defect.
"""

import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from hotplate.bench.faults.arena import invented_text
from hotplate.bench.fuzz.corpora import corpora
from hotplate.bench.fuzz.speech import speech
from hotplate.bench.fuzz.studies import studies
from hotplate.bench.fuzz.target import Target
from hotplate.train import checkpoint, settings, tensor_files
from hotplate.train.data.dataset import MANIFEST, Dataset, Manifest
from hotplate.train.data.file_lists import FileLists
from hotplate.train.data.prepare import PrepareConfig, prepare
from hotplate.train.data.shards import Shard, ShardHeader, write_shard
from hotplate.train.data.units import FILE as UNITS
from hotplate.train.data.units import UnitDescription
from hotplate.train.errors import InputError
from hotplate.train.manifest import TRAINER
from hotplate.train.sinks import read_records
from hotplate.train.tensor_files import Layout
from hotplate.train.watchdog import Life

SHARED = Path("/dev/shm")  # memory: the parsers are tried, not the disk


@contextmanager
def targets() -> Iterator[dict[str, Target]]:
    """All of them, over a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="hotplate-fuzz-", dir=SHARED if SHARED.is_dir() else None))
    try:
        made = [*_shards(folder), *_data(folder), *_configs(folder), *_checkpoints(folder), *_run_files(folder)]
        made += [*corpora(folder, folder / "set"), *speech(folder, folder / "set"), *studies(folder)]
        yield {target.name: target for target in made}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shards(folder: Path) -> list[Target]:
    documents = [np.arange(2, 2 + n) for n in (3, 0, 17)]
    path = folder / "whole.tokens"
    write_shard(path, documents, vocab=300, eod=1, tokenizer_sha256="0" * 64)
    whole = path.read_bytes()
    header = folder / "header.tokens"
    return [
        Target("shard", path, [whole], lambda: Shard.open(path, "full")),
        Target("shard header", header, [whole[:192]], lambda: ShardHeader.unpack(header.read_bytes()[:192], header)),
    ]


def _data(folder: Path) -> list[Target]:
    texts, data = folder / "texts", folder / "set"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(invented_text(120, number))
    prepare(PrepareConfig(source=str(texts), out=str(data), vocab=2048, validation=0.1, test=0.1, workers=1))
    manifest = data / MANIFEST
    lists, units = folder / "lists", folder / "units"
    lists.mkdir()
    units.mkdir()
    FileLists({f"book {n}": ("train", f"{n:064x}") for n in range(3)}).write(lists)
    description = UnitDescription(
        backend="hubert", units=500, unit_seconds=0.04, sample_rate=16000, weights_sha256="", codebook_sha256="0" * 64,
        options={"layer": 11},
    )  # fmt: skip
    description.write(units)
    return [
        Target("data set manifest", manifest, [manifest.read_bytes()], lambda: Manifest.read(data)),
        Target("data set", manifest, [manifest.read_bytes()], lambda: Dataset.open(data, "header")),
        Target("file list", lists / "train.list", [(lists / "train.list").read_bytes()], lambda: FileLists.read(lists)),
        Target(
            "units description",
            units / UNITS,
            [(units / UNITS).read_bytes()],
            lambda: UnitDescription.read(units / UNITS),
        ),
    ]


def _configs(folder: Path) -> list[Target]:
    config = folder / "config.toml"
    seeds = [path.read_bytes() for path in sorted(settings.SHIPPED.glob("*.toml"))]
    return [Target("config", config, seeds, lambda: settings.load_preset(str(config)))]


def _checkpoints(folder: Path) -> list[Target]:
    """Every file of a checkpoint, the others being whole."""
    tensors = {
        "model": {"w": torch.arange(6.0).view(2, 3)},
        "optimizer": {"exp_avg.w": torch.zeros(2, 3)},
        "state": {"random.cpu": torch.zeros(8, dtype=torch.uint8)},
    }
    made = []
    for name in (checkpoint.MANIFEST, TRAINER, "model-00000.safetensors"):
        path = folder / name.split(".")[0] / "step-00000003"
        path.parent.mkdir()
        checkpoint.write(path, tensors, {"step": 3, "config": {}})
        parse = functools.partial(_all_tensors, path)
        made.append(Target(f"checkpoint {name}", path / name, [(path / name).read_bytes()], parse))
    path = folder / "alone.safetensors"
    layouts = {name: Layout(x.dtype, tuple(x.shape)) for name, x in tensors["model"].items()}
    tensor_files.write(path, layouts, tensors["model"].__getitem__)
    made.append(Target("tensor file", path, [path.read_bytes()], functools.partial(_tensor_file, path, layouts)))
    return made


def _all_tensors(path: Path) -> None:
    """What resuming does with a checkpoint."""
    found = checkpoint.load(path)
    for part in (found.model, found.optimizer, found.state):
        list(part.items())


def _tensor_file(path: Path, layouts: dict[str, Layout]) -> None:
    """Reading without a manifest that vouches for the bytes; its caller turns a ValueError into the message."""
    try:
        reader = tensor_files.Reader(path)
        for name, layout in layouts.items():
            reader.get(name, layout)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _run_files(folder: Path) -> list[Target]:
    metrics, life = folder / "metrics.jsonl", folder / "00000.json"
    lines = [json.dumps({"step": n, "loss": 3.5, "skipped": 0}) for n in range(3)]
    sign = {
        "rank": 0, "process": 7, "started": 3, "host": "box", "step": 9, "phase": "train", "unix_time": 1.0,
        "paid_seconds": {"train": 2.0}, "down_seconds": 0.0,
    }  # fmt: skip
    return [
        Target("metrics", metrics, ["\n".join(lines).encode()], lambda: read_records(metrics)),
        Target("sign of life", life, [json.dumps(sign).encode()], lambda: Life.read(life)),
    ]
