"""Preference pairs: a file of prompts with two continuations each, packed into rows like documents.

The file holds one JSON object a line with `prompt`, `chosen` and `rejected`: text, or token ids. A sequence is
[D, prompt, continuation, D], D the document symbol; its two sequences share a row, so that micro-batches and ranks
never part them. G global rows per step, T pairs of (input, target) per row.
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
from hotplate.train.data.packing import best_fit_decreasing
from hotplate.train.data.permutation import permute
from hotplate.train.data.rows import boundaries, check_rows, make_batch
from hotplate.train.data.units import AnyTokenizer
from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Token ids, int64."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def size(self) -> int:
        """(input, target) places of both sequences: [D, prompt, y, D] has len(prompt) + len(y) + 1."""
        return 2 * (len(self.prompt) + 1) + len(self.chosen) + len(self.rejected)


def read_pairs(path: Path, tokenizer: AnyTokenizer) -> list[Pair]:
    """InputError naming file and line for what is no pair, an empty continuation, or an id outside the vocabulary."""
    pairs = []
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
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise InputError(f"{where}: want text or a list of token ids, got {str(value)[:40]!r}")
    ids = np.asarray(value, np.int64)
    if len(ids) and not (ids.min() >= 0 and ids.max() < tokenizer.vocab):
        raise InputError(f"{where}: ids {ids.min()}..{ids.max()}, the vocabulary is 0..{tokenizer.vocab - 1}")
    return ids


class PairSource:
    """Rows of pairs: packed once, visited in another order every epoch. `reference` [pairs, 2] must be set before
    batches are made; `fill` is the share of places in use."""

    def __init__(self, pairs: list[Pair], *, rows: int, window: int, seed: int, eod: int, where: str) -> None:
        sizes = np.array([pair.size for pair in pairs], np.int64)
        if sizes.max() > window:
            raise InputError(
                f"{where}: pair {int(sizes.argmax()) + 1} takes {int(sizes.max())} places, a row has {window}; "
                "raise --data.window or leave it out"
            )
        self.pairs, self.rows, self.window, self.seed, self.eod = pairs, rows, window, seed, eod
        self.tokens_per_step = rows * window
        order = np.argsort(-sizes, kind="stable")
        row = np.empty(len(pairs), np.int64)
        row[order] = best_fit_decreasing(sizes[order], window)
        self._of_row = [np.flatnonzero(row == r) for r in range(int(row.max()) + 1)]
        self.fill = float(sizes.sum()) / (len(self._of_row) * window)
        self.segments = 2 * max(map(len, self._of_row)) + 1
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
        sequences: list[np.ndarray] = []
        numbers: list[int] = []
        for r, plan_row in enumerate(plan_rows):
            at = 0
            for number in self._of_row[plan_row]:
                numbers.append(int(number))
                pair = self.pairs[number]
                for continuation in (pair.chosen, pair.rejected):
                    ids = np.concatenate([[self.eod], pair.prompt, continuation, [self.eod]])
                    size, start = len(ids) - 1, at + len(pair.prompt)
                    inputs[r, at : at + size], targets[r, at : at + size] = ids[:-1], ids[1:]
                    positions[r, at : at + size] = np.arange(size)
                    scored[r, start : at + size] = True
                    sequences.append(np.arange(start, at + size) + r * self.window)
                    at += size
            positions[r, at:] = np.arange(self.window - at)
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
            bounds=boundaries(starts, len(plan_rows) * self.segments),
        )
        reference = torch.from_numpy(self.reference[numbers].reshape(-1))
        return replace(batch, sequences=torch.from_numpy(table), reference=reference), np.array(numbers, np.int64)
