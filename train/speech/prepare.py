"""Units to a prepared data set: the token shards of text, with unit u as id u + 2, and the durations beside them.

`SPLIT.durations` holds one little-endian uint16 per unit, in the order of the split's documents: frames of the unit.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from hotplate.train.data.dataset import Dataset
from hotplate.train.data.documents import Skipped
from hotplate.train.data.encoding import Encoded, write_dataset
from hotplate.train.data.prepare import Survey, assign_splits, order_key
from hotplate.train.data.publish import exclusive, published
from hotplate.train.data.units import FILE, FIRST_UNIT, UnitDescription, UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.speech.store import UnitFolder, Utterance

CUT = "#"  # between a file's name and the part of it that an utterance is


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Which utterances go where."""

    validation: float = 0.01
    """share of the units, by utterances"""
    test: float = 0.01
    """share of the units, by utterances"""
    seed: int = 0
    """chooses the utterances of the splits; parts of one file stay side by side"""
    shortest: int = 1
    """units; shorter utterances are left out"""
    shard_tokens: int = 1 << 28
    """tokens per shard file"""

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError(f"want shares >= 0 that sum to below 1, got {self.validation} and {self.test}")


def prepare_units(inputs: tuple[str, ...], out: Path, config: StoreConfig) -> Dataset:
    """Make the data set `out` of all folders of units; it appears complete or not at all.

    InputError: folders of different units, too few utterances, `out` exists.
    """
    folders = [UnitFolder.open(Path(given)) for given in inputs]
    if not folders:
        raise InputError("hotplate speech prepare: want one or more folders of `hotplate speech encode`")
    description = folders[0].description
    for folder in folders[1:]:
        description.check_same(folder.description, str(folder.path))
    with exclusive(out):
        if out.exists():
            raise InputError(f"{out} exists already; remove it or choose another -o")
        _build(folders, description, out, config)
    return Dataset.open(out, "header")


def read_durations(dataset: Dataset, split: str, document: int) -> np.ndarray:
    """uint16 frames of each unit of a document. InputError when the data set has no durations."""
    path = dataset.folder / f"{split}.durations"
    starts = dataset.split(split).starts
    units = dataset.split(split).tokens - dataset.split(split).documents
    if not path.is_file() or path.stat().st_size != 2 * units:
        raise InputError(f"{path}: want {2 * units} bytes of durations; prepare the units again")
    begin, end = int(starts[document]) - document, int(starts[document + 1]) - document - 1
    return np.array(np.memmap(path, "<u2", "r")[begin:end])


def _build(folders: list[UnitFolder], description: UnitDescription, out: Path, config: StoreConfig) -> None:
    hashes, sizes, names = [], [], []
    for utterance in _utterances(folders, config):
        hashes.append(order_key(utterance.name.partition(CUT)[0], config.seed))
        sizes.append(len(utterance.units))
        names.append(utterance.name)
    if not sizes:
        raise InputError(f"{', '.join(str(f.path) for f in folders)}: no utterances of {config.shortest} units or more")
    split_of = assign_splits(Survey(hashes, sizes, Skipped(), names), config.validation, config.test)
    with published(out) as partial:
        description.write(partial)
        tokenizer = UnitTokenizer.load(partial / FILE)
        source = {
            "units": [str(folder.path) for folder in folders],
            "unit_seconds": description.unit_seconds,
            "seed": config.seed,
            "durations": _write_durations(partial, split_of, _utterances(folders, config), description),
        }
        encoded = (
            Encoded(utterance.units.astype(np.uint32) + FIRST_UNIT, len(utterance.units), len(utterance.units))
            for utterance in _utterances(folders, config)
        )
        write_dataset(partial, zip(split_of, encoded, strict=True), tokenizer, config.shard_tokens, source)


def _utterances(folders: list[UnitFolder], config: StoreConfig) -> Iterator[Utterance]:
    everything = chain.from_iterable(folder.utterances() for folder in folders)
    return (utterance for utterance in everything if len(utterance.units) >= config.shortest)


def _write_durations(
    folder: Path, split_of: list[str], utterances: Iterator[Utterance], description: UnitDescription
) -> dict[str, dict]:
    """The durations of each split, and what dataset.json says of them."""
    totals: dict[str, dict] = {}
    hashes = {name: hashlib.sha256() for name in set(split_of)}
    counts = {name: [0, 0] for name in hashes}  # units, frames
    files = {name: open(folder / f"{name}.durations", "wb") for name in sorted(hashes)}  # noqa: SIM115 - closed below
    try:
        for name, utterance in zip(split_of, utterances, strict=True):
            raw = utterance.durations.astype("<u2").tobytes()
            files[name].write(raw)
            hashes[name].update(raw)
            counts[name][0] += len(utterance.units)
            counts[name][1] += int(utterance.durations.sum(dtype=np.int64))
    finally:
        for file in files.values():
            file.close()
    for name, (units, frames) in counts.items():
        seconds = frames * description.unit_seconds
        facts = {"file": f"{name}.durations", "sha256": hashes[name].hexdigest(), "seconds": round(seconds, 2)}
        totals[name] = {**facts, "units_per_second": round(units / seconds, 4)}
    return totals
