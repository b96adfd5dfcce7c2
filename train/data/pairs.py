"""Preference pairs: a file of prompts with two continuations each, packed into rows like documents.

The file holds one JSON object a line with `prompt`, `chosen` and `rejected`: text, token ids, or objects with `units`.
A sequence is [D, prompt, continuation, D], D the document symbol; its two sequences share a row, so that micro-batches
and ranks never part them. G global rows per step, T places of a row, A places that attention sees of it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotplate.model.batch import Batch
from hotplate.train.data.mixed import AnyTokenizer
from hotplate.train.data.packing import best_fit_decreasing
from hotplate.train.data.permutation import permute
from hotplate.train.data.rows import boundaries, check_rows, make_batch
from hotplate.train.data.units import FIRST_UNIT, UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Token ids, int64."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    def size(self, shared: bool) -> int:
        """(input, target) places of both sequences: [D, prompt, y, D] has len(prompt) + len(y) + 1. `shared`: what
        precedes the prompt's last token is there once; that token's two targets differ, so it is there twice.
        """
        whole = 2 * (len(self.prompt) + 1) + len(self.chosen) + len(self.rejected)
        return whole - len(self.prompt) if shared else whole

    def sequence(self, continuation: np.ndarray, eod: int) -> np.ndarray:
        return np.concatenate([[eod], self.prompt, continuation, [eod]])


def read_pairs(path: Path, tokenizer: AnyTokenizer) -> list[Pair]:
    """InputError naming file and line for what is no pair, an empty continuation, an id outside the vocabulary, or
    other units than the tokenizer's. A first line with a `fingerprint` says which units they are.
    """
    pairs: list[Pair] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--preference.pairs {path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            value = parse_json(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON: {error}") from error
        if isinstance(value, dict) and "fingerprint" in value and not pairs:
            if value["fingerprint"] != tokenizer.fingerprint:
                raise InputError(
                    f"{where}: units {str(value['fingerprint'])[:16]}, the data set has {tokenizer.fingerprint[:16]}; "
                    "encode both with one backend and codebook"
                )
            continue
        if not isinstance(value, dict) or any(field not in value for field in FIELDS):
            raise InputError(f"{where}: want an object with {', '.join(FIELDS)}, got {line[:60]!r}")
        ids = [_ids(value[field], tokenizer, f"{where}: {field}") for field in FIELDS]
        if not len(ids[1]) or not len(ids[2]):
            raise InputError(f"{where}: an empty continuation; give chosen and rejected at least one token each")
        pairs.append(Pair(*ids))
    if not pairs:
        raise InputError(f"--preference.pairs {path}: holds no pair")
    return pairs


def _ids(value: Any, tokenizer: AnyTokenizer, where: str) -> np.ndarray:
    if isinstance(value, str):
        return np.asarray(tokenizer.encode(value), np.int64)
    first = 0
    if isinstance(value, dict) and isinstance(tokenizer, UnitTokenizer):
        value, first = value.get("units"), FIRST_UNIT
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise InputError(f"{where}: want text, token ids or an object with units, got {str(value)[:40]!r}")
    least, most = min(value, default=0) + first, max(value, default=0) + first
    if value and not 0 <= least <= most < tokenizer.vocab:
        raise InputError(f"{where}: ids {least}..{most}, the vocabulary is 0..{tokenizer.vocab - 1}")
    return np.asarray(value, np.int64) + first


class PairSource:
    """Rows of pairs: packed once, visited in another order every epoch. `reference` [pairs, 2] must be set before
    batches are made; `fill` is the share of places in use. `shared`: a pair's prompt is in its row once, for models
    of attention; recurrent state cannot fork, so there each sequence has its own."""

    def __init__(
        self, pairs: list[Pair], *, rows: int, window: int, seed: int, eod: int, shared: bool, where: str
    ) -> None:
        sizes = np.array([pair.size(shared) for pair in pairs], np.int64)
        if sizes.max() > window:
            raise InputError(
                f"{where}: pair {int(sizes.argmax()) + 1} takes {int(sizes.max())} places, a row has {window}; "
                "raise --data.window or leave it out"
            )
        self.pairs, self.rows, self.window, self.seed, self.eod = pairs, rows, window, seed, eod
        self.shared = shared
        self.tokens_per_step = rows * window
        order = np.argsort(-sizes, kind="stable")
        row = np.empty(len(pairs), np.int64)
        row[order] = best_fit_decreasing(sizes[order], window)
        self._of_row = [np.flatnonzero(row == r) for r in range(int(row.max()) + 1)]
        self.fill = float(sizes.sum()) / (len(self._of_row) * window)
        self.segments = 2 * max(map(len, self._of_row)) + 1
        seen = np.array([pair.size(shared=False) for pair in pairs], np.int64)
        self.attended = int(max(window, np.bincount(row, seen).max())) if shared else window
        self.reference = np.zeros((len(pairs), 2), np.float32)
        content = json.dumps([[x.tolist() for x in (p.prompt, p.chosen, p.rejected)] for p in pairs])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    @property
    def plan_rows(self) -> int:
        """Rows of one pass over all pairs."""
        return len(self._of_row)

    def epoch(self, step: int) -> float:
        """Passes over the pairs that are complete before `step`."""
        return step * self.rows / self.plan_rows

    def batch(self, step: int, rows: range) -> Batch:
        """Global rows `rows` of `step`: a function of (seed, step, rows) alone."""
        check_rows(rows, self.rows)
        sequence = step * self.rows + np.arange(rows.start, rows.stop)
        epochs, places = np.divmod(sequence, self.plan_rows)
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            chosen[inside] = permute(places[inside], self.plan_rows, self.seed, int(epoch))
        return self.of_rows(chosen)[0]

    def of_rows(self, plan_rows: Sequence[int] | np.ndarray) -> tuple[Batch, np.ndarray]:
        """A batch of these rows of the plan, and the numbers of its pairs in the order of its sequences."""
        shape = (len(plan_rows), self.window)
        inputs, targets = np.full(shape, self.eod), np.full(shape, self.eod)
        positions, scored = np.zeros(shape, np.int64), np.zeros(shape, bool)
        forks = _Forks(shape, self.attended) if self.shared else None
        sequences: list[np.ndarray] = []
        numbers: list[int] = []
        for r, plan_row in enumerate(plan_rows):
            at = 0
            for number in self._of_row[plan_row]:
                numbers.append(int(number))
                pair = self.pairs[number]
                common, begin = len(pair.prompt) if self.shared else 0, at
                for continuation in (pair.chosen, pair.rejected):
                    ids = pair.sequence(continuation, self.eod)
                    size = len(ids) - 1
                    own = common if sequences and len(sequences) % 2 else 0  # the second one's beginning is there
                    places = slice(at, at + size - own)
                    inputs[r, places], targets[r, places] = ids[own:-1], ids[own + 1 :]
                    positions[r, places] = np.arange(own, size)
                    start = at + len(pair.prompt) - own
                    at += size - own
                    scored[r, start:at] = True
                    sequences.append(np.arange(start, at) + r * self.window)
                    if forks is not None:
                        shared = np.arange(begin, begin + own)
                        forks.add(r, np.concatenate([shared, np.arange(places.start, places.stop)]), own)
            positions[r, at:] = np.arange(self.window - at)
            if forks is not None:
                forks.pad(r, at)
        table = np.full((len(sequences), max(map(len, sequences))), inputs.size)
        for n, found in enumerate(sequences):
            table[n, : len(found)] = found
        starts = positions == 0
        batch = make_batch(
            inputs,
            targets,
            np.zeros(1 + int(max(inputs.max(), targets.max())), np.int32),
            positions=positions,
            scored=scored,
            resets=starts,
            bounds=boundaries(starts if forks is None else forks.starts, len(plan_rows) * self.segments),
        )
        reference = torch.from_numpy(self.reference[numbers].reshape(-1))
        batch = replace(batch, sequences=torch.from_numpy(table), reference=reference)
        if forks is not None:
            batch = replace(batch, spread=torch.from_numpy(forks.spread), gather=torch.from_numpy(forks.gather))
        return batch, np.array(numbers, np.int64)


class _Forks:
    """What attention sees of a batch's rows: every sequence in full, one after another, and where its steps are."""

    def __init__(self, shape: tuple[int, int], attended: int) -> None:
        self._rows, self._window = shape
        self.spread = np.zeros((self._rows, attended), np.int64)
        self.gather = np.zeros(shape, np.int64)
        self.starts = np.zeros((self._rows, attended), bool)
        self._at = np.zeros(self._rows, np.int64)

    def add(self, row: int, places: np.ndarray, shared: int) -> None:
        """A sequence by the places of its steps in the row; the first `shared` have their output from another."""
        at, count = int(self._at[row]), len(places)
        self.spread[row, at : at + count] = places + row * self._window
        self.gather[row, places[shared:]] = np.arange(at + shared, at + count) + row * self.starts.shape[1]
        self.starts[row, at] = True
        self._at[row] = at + count

    def pad(self, row: int, used: int) -> None:
        """Places of the row from `used` on, and what is left of what attention sees, are nobody's."""
        at, attended = int(self._at[row]), self.starts.shape[1]
        self.spread[row, at:] = row * self._window + min(used, self._window - 1)
        self.gather[row, used:] = row * attended + min(at, attended - 1)
        if at < attended:
            self.starts[row, at] = True
