from dataclasses import fields

import numpy as np
import pytest
import torch

from hotplate.train.data.sources import PackedSource
from hotplate.train.data.streams import StreamSource, distribute
from hotplate.train.data.windows import WindowSource
from hotplate.train.errors import InputError

BYTES = np.arange(100, dtype=np.int32) % 7  # of id 0, which ends documents: none


def _packed(split, rows=4, window=32, seed=0):
    return PackedSource(split, rows=rows, window=window, seed=seed, byte_lengths=BYTES, vocab=100)


def _streams(split, rows=4, window=32, resets=False):
    return StreamSource(split, rows=rows, window=window, byte_lengths=BYTES, vocab=100, resets=resets)


def _lengths(count=150, seed=1):
    return np.random.default_rng(seed).integers(1, 90, count)


def _check_batch(batch, split, segments_per_row):
    """What every batch with segments satisfies; returns the segments as (row, start, stop)."""
    rows, window = batch.tokens.shape
    assert batch.tokens.dtype == batch.targets.dtype == batch.positions.dtype == torch.int64
    assert batch.weights.dtype == torch.float32 and batch.target_bytes.dtype == torch.int32
    assert batch.resets.dtype == torch.bool and batch.cu_seqlens.dtype == torch.int32
    assert len(batch.cu_seqlens) == rows * segments_per_row + 1
    scored = batch.weights > 0
    assert torch.equal(batch.target_bytes, torch.from_numpy(BYTES)[batch.targets] * scored)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == rows * window and bounds == sorted(bounds)
    segments = [(a, b) for a, b in zip(bounds, bounds[1:], strict=False) if a < b]
    assert {row * window for row in range(rows)} <= {a for a, _ in segments}
    positions, resets = batch.positions.flatten(), batch.resets.flatten()
    for a, b in segments:
        assert positions[a:b].tolist() == list(range(b - a))
        assert not resets[a + 1 : b].any()
        assert len(set(batch.weights.flatten()[a:b].tolist())) == 1
    return segments


def test_packed_epoch_visits_every_pair_once(random_split):
    split = random_split(_lengths(), shards=3)
    source = _packed(split)
    rows_left, seen = source.plan.rows, []
    step = 0
    while rows_left:
        take = min(4, rows_left)
        batch = source.batch(step, range(4))
        segments = _check_batch(batch, split, source.segments)
        assert all(batch.resets.flatten()[a] for a, _ in segments)
        assert batch.slots is None
        for a, b in segments:
            if a < take * source.window and batch.weights.flatten()[a] > 0:
                pair = (batch.tokens.flatten()[a:b], batch.targets.flatten()[a:b])
                seen.append(tuple(map(tuple, (pair[0].tolist(), pair[1].tolist()))))
            elif a < take * source.window:
                assert (batch.tokens.flatten()[a:b] == split.eod).all()
        rows_left, step = rows_left - take, step + 1
    assert sum(len(inputs) for inputs, _ in seen) == split.tokens
    pieces = sorted(zip(source.plan.begins.tolist(), source.plan.sizes.tolist(), strict=True))
    want = [split.gather(np.arange(begin, begin + size)) for begin, size in pieces]
    assert sorted(seen) == sorted((tuple(x.tolist()), tuple(y.tolist())) for x, y in want)


def test_packed_epochs_differ_and_are_counted(random_split):
    source = _packed(random_split(_lengths()), rows=1)
    n = source.plan.rows
    epochs = [[tuple(source.batch(e * n + r, range(1)).tokens[0].tolist()) for r in range(n)] for e in (0, 1, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert source.epoch(0) == 0 and source.epoch(n) == 1 and source.epoch(2 * n) == 2
    other = _packed(random_split(_lengths()), rows=1, seed=1)
    assert [tuple(other.batch(r, range(1)).tokens[0].tolist()) for r in range(n)] != epochs[0]


@pytest.mark.parametrize("make", [_packed, _streams, lambda split, rows: _streams(split, rows, resets=True)])
def test_rows_do_not_depend_on_world_size_or_micro_batches(random_split, make):
    split = random_split(_lengths(), shards=2)
    whole = make(split, rows=8)
    for step in (0, 3, 101):
        full = whole.batch(step, range(8))
        for size in (1, 2, 4):
            parts = [make(split, rows=8).batch(step, range(at, at + size)) for at in range(0, 8, size)]
            for field in fields(full):
                want = getattr(full, field.name)
                if field.name == "cu_seqlens":
                    continue  # its length is per batch; the segments it marks are those of positions
                if want is None:
                    assert all(getattr(part, field.name) is None for part in parts)
                else:
                    assert torch.equal(torch.cat([getattr(part, field.name) for part in parts]), want)


def _languini_queues(documents, rows):
    """Languini's queues, one token at a time: each document to the shortest queue, D after each."""
    queues, totals = [[] for _ in range(rows)], [0] * rows
    for document in documents:
        shortest = totals.index(min(totals))
        queues[shortest].append(document)
        totals[shortest] += len(document)
    return [[token for document in queue for token in [*document, 0]] for queue in queues]


def test_queues_are_balanced_without_counting_document_ends():
    assert [queue.tolist() for queue in distribute(np.array([3, 1, 1, 1, 1]), 2)] == [[0, 4], [1, 2, 3]]


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_streams_are_languinis(random_split, resets, shards):
    split = random_split(_lengths(40), shards=shards)
    documents = [split.read(number)[1][:-1].tolist() for number in range(split.documents)]
    queues = _languini_queues(documents, 5)
    source = _streams(split, rows=5, window=16, resets=resets)
    for step in range(60):  # several times round
        batch = source.batch(step, range(1, 4))
        assert batch.slots.tolist() == [1, 2, 3]
        assert (batch.weights == 1).all()
        for row, queue in enumerate(queues[1:4]):
            window = [queue[at % len(queue)] for at in range(step * 16, step * 16 + 17)]
            assert batch.tokens[row].tolist() == window[:-1]
            assert batch.targets[row].tolist() == window[1:]
            if resets:
                starts = [token == 0 or step + at == 0 for at, token in enumerate(window[:-1])]
                assert batch.resets[row].tolist() == starts
        if resets:
            _check_batch(batch, split, source.segments)
        else:
            assert batch.resets is None and batch.cu_seqlens is None
            assert batch.positions.tolist() == [list(range(16))] * 3


def test_stream_of_documents_shorter_than_the_window(random_split):
    split = random_split([1, 2, 1, 3, 1, 1, 2, 2, 1, 1])
    source = _streams(split, rows=2, window=12, resets=True)
    for step in range(9):
        _check_batch(source.batch(step, range(2)), split, source.segments)
    assert source.epoch(1) == 24 / split.tokens


def test_too_little_data(random_split):
    split = random_split([9, 9, 9])  # 30 pairs
    message = r"3 documents with 30 tokens, but one step needs 4 rows x 32 = 128"
    with pytest.raises(InputError, match=message):
        _packed(split)
    with pytest.raises(InputError, match="3 documents, but 4 streams need one each"):
        _streams(split)
    with pytest.raises(InputError, match=r"one step needs 2 rows x 32 = 64"):
        _streams(split, rows=2)
    with pytest.raises(InputError, match="the model has 99 ids, split 'train' has 100"):
        PackedSource(split, rows=1, window=8, seed=0, byte_lengths=BYTES, vocab=99)


@pytest.mark.parametrize("rows", [range(0), range(3, 5), range(0, 4, 2)])
def test_rows_outside_the_step(random_split, rows):
    source = _packed(random_split(_lengths()))
    with pytest.raises(ValueError, match=r"want consecutive rows within range\(4\)"):
        source.batch(0, rows)


def _score(source):
    """For every scored target of the batches: (previous token, target, tokens seen before it in its row)."""
    return [
        (int(batch.tokens[row, at]), int(batch.targets[row, at]), at)
        for batch in source
        for row in range(batch.rows)
        for at in range(source.window)
        if batch.weights[row, at] > 0
    ]


@pytest.mark.parametrize("documents", ["join", "reset"])
@pytest.mark.parametrize(("window", "last_n", "rows"), [(16, 16, 1), (16, 4, 3), (16, 5, 2), (7, 1, 4), (5000, 10, 2)])
def test_windows_score_every_target_once_in_order(random_split, documents, window, last_n, rows):
    split = random_split(_lengths(12), shards=2)
    source = WindowSource(split, window, last_n, rows, documents, byte_lengths=BYTES)
    scored = _score(source)
    inputs, targets = split.gather(np.arange(split.tokens))
    assert [pair[:2] for pair in scored] == list(zip(inputs.tolist(), targets.tolist(), strict=True))
    assert all(seen >= window - last_n for _, _, seen in scored[window:])
    assert len(list(source)) == len(source) and source.tokens == split.tokens
    for batch in source:
        assert batch.tokens.shape == (rows, window) and batch.slots is None
        assert (batch.target_bytes[batch.weights == 0] == 0).all()


@pytest.mark.parametrize("documents", ["join", "reset"])
@pytest.mark.parametrize("streams", [1, 3, 7])
def test_carried_windows_continue_their_streams(random_split, documents, streams):
    split = random_split(_lengths(12), shards=2)
    source = WindowSource(split, 16, None, streams, documents, streams, byte_lengths=BYTES, carry=True)
    rows = [[] for _ in range(streams)]
    for batch in source:
        assert batch.slots.tolist() == list(range(streams))
        for row in range(streams):
            rows[row] += batch.targets[row][batch.weights[row] > 0].tolist()
            if documents == "reset":  # D is the first input of a document; a window's start alone resets nothing
                inside = batch.weights[row] > 0
                assert torch.equal(batch.resets[row][inside], (batch.tokens[row] == 0)[inside])
    assert sum(rows, []) == split.gather(np.arange(split.tokens))[1].tolist()
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_windows_with_reset_separate_documents(random_split):
    split = random_split([5, 1, 40, 2, 2, 3, 9])
    source = WindowSource(split, 16, 4, 2, "reset", byte_lengths=BYTES)
    for batch in source:
        bounds = batch.cu_seqlens.tolist()
        assert len(bounds) == 2 * source.segments + 1 and bounds[-1] == 32
        starts = batch.resets.flatten().nonzero().flatten().tolist()
        assert bounds[: len(starts)] == starts and set(bounds[len(starts) :]) == {32}
        for a, b in zip(bounds, bounds[1:], strict=False):
            assert batch.positions.flatten()[a:b].tolist() == list(range(b - a))
            assert not (batch.tokens.flatten()[a + 1 : b][batch.weights.flatten()[a + 1 : b] > 0] == 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_n": 0}, "want 1 <= last_n <= window = 16, got 0"),
        ({"last_n": 17}, "want 1 <= last_n <= window = 16, got 17"),
        ({"documents": "split"}, 'want documents "join" or "reset"'),
        ({"streams": 2, "batch_rows": 2, "last_n": 4}, "carried state needs last_n == window = 16, got 4"),
        ({"streams": 2}, "carried state needs batch_rows == streams = 2, got 1"),
        ({"streams": 0}, "streams, got 0"),
    ],
)
def test_window_options(random_split, options, message):
    with pytest.raises(ValueError, match=message):
        WindowSource(random_split([50]), 16, **options, byte_lengths=BYTES)
