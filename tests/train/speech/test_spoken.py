"""Text and speech in one data set: what a draw holds, fresh epochs, mixed rows, a run, and restricted measures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_waves import RATE, babble
from tiny import TINY

from hotplate.train.commands import generate
from hotplate.train.commands.train import main as train
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.mixed import MixedTokenizer, Segment
from hotplate.train.data.mixture import PERIOD, MixtureSource
from hotplate.train.data.sources import PackedSource
from hotplate.train.data.tokenizer import train_tokenizer
from hotplate.train.errors import InputError
from hotplate.train.sinks import read_records
from hotplate.train.speech.audio import write_audio
from hotplate.train.speech.interleaved_source import InterleavedSource
from hotplate.train.speech.spoken import SpokenConfig as Config
from hotplate.train.speech.spoken import draw, prepare_spoken, read_spoken

SENTENCE = "the old farmer went home and bought a brown horse from the captain of a small boat"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def mixed(recordings: Path, unit_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings with invented words every 0.2 s, interleaved."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in recordings.rglob("*.wav"):
        count = int((0.6 + 0.1 * int(path.stem)) / 0.2)
        rows = [
            {"word": f"{' ' * (i > 0)}{WORDS[(int(path.stem) + i) % 17]}", "start_time": i / 5, "end_time": (i + 1) / 5}
            for i in range(count)
        ]
        beside = folder / "words" / path.relative_to(recordings).with_suffix(".json")
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"aligned_text": rows}))
    letters = np.random.default_rng(0).choice(list("etaoinshrdlu"), (4000, 7))
    text = " ".join("".join(row[: 2 + i % 6]) for i, row in enumerate(letters)) + " ".join(WORDS * 20)
    train_tokenizer([text], 2048, folder / "t.model")
    how = {"method": "random", "share": 0.5, "validation": 0.1, "test": 0.1}
    config = Config(alignments=(str(folder / "words"),), tokenizer=str(folder / "t.model"), **how)
    made = prepare_spoken((str(unit_set.parent / "units"),), folder / "set", config)
    assert made.failed == []
    return folder / "set"


def opened(folder: Path) -> tuple[Dataset, MixedTokenizer]:
    dataset = Dataset.open(folder)
    assert isinstance(dataset.tokenizer, MixedTokenizer)
    return dataset, dataset.tokenizer


def test_a_draw_is_text_and_units_of_the_same_document_in_order(mixed: Path) -> None:
    """Each document's parts, put together from its words and its units by hand."""
    dataset, tokenizer = opened(mixed)
    found = read_spoken(dataset)
    assert found is not None
    spoken, config = found
    both = 0
    for document, ids in zip(spoken, draw(spoken, tokenizer, config, 3), strict=True):
        text = tokenizer.decode(ids[ids < tokenizer.text_ids].tolist())
        whole = tokenizer.tokenizer.decode(np.concatenate(document.words).tolist())
        assert all(word in whole.split() for word in text.split())
        units = ids[(ids >= tokenizer.text_ids) & (ids < tokenizer.text_ids + tokenizer.units)] - tokenizer.text_ids
        assert len(units) <= len(document.units) + len(document.words)
        markers = ids[ids >= tokenizer.text_ids + tokenizer.units]
        assert ids[0] == markers[0] and not (np.diff(markers) == 0).any()  # every marker is a switch
        both += bool(len(units)) and bool(text)
    assert both > 10
    train_split = dataset.split("train")
    first = draw(spoken, tokenizer, config, 0)
    for number in range(train_split.documents):
        assert train_split.read(number)[1][:-1].tolist() == first[number].tolist()


def test_epochs_are_drawn_anew_and_reproducibly(mixed: Path) -> None:
    dataset, tokenizer = opened(mixed)
    spoken, config = read_spoken(dataset) or ([], None)
    assert config is not None

    def source() -> InterleavedSource:
        return InterleavedSource(spoken, tokenizer, config, rows=2, window=64, seed=1)

    one, other = source(), source()
    steps = -(-one.plan.rows // 2)
    far = [other.batch(step, range(2)).tokens for step in (3 * steps, 0, steps, 2 * steps)]  # in any order
    near = [one.batch(step, range(2)).tokens for step in (0, steps, 2 * steps, 3 * steps)]
    assert all(torch.equal(a, b) for a, b in zip(near, [*far[1:], far[0]], strict=True))
    draws = {b"".join(ids.tobytes() for ids in draw(spoken, tokenizer, config, epoch)) for epoch in range(4)}
    assert len(draws) == 4
    whole = one.batch(steps - 1, range(2))  # may straddle two epochs
    parts = [one.batch(steps - 1, range(r, r + 1)) for r in range(2)]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert one.fill > 0.95


def test_rows_of_a_mixture_have_their_shares_and_read_every_source_in_turn(mixed: Path) -> None:
    dataset, tokenizer = opened(mixed)
    lengths = tokenizer.byte_lengths()
    shape = {"rows": 1, "window": 32, "seed": 3, "byte_lengths": lengths, "vocab": dataset.vocab}
    sources = {name: PackedSource(dataset.split(name), **shape) for name in ("text", "speech")}
    mixture = MixtureSource(sources, {"text": 1.0, "speech": 3.0}, rows=4)
    batches = [mixture.batch(step, range(4)) for step in range(PERIOD // 4)]
    first, last = tokenizer.range_of("speech")
    rows = torch.cat([batch.targets[batch.weights.sum(1) > 0] for batch in batches])
    spoken = ((rows >= first) & (rows < last)).any(1)
    assert spoken.sum() == 750 and mixture.epochs(PERIOD // 4)["text"] == 250 / sources["text"].plan.rows
    read = torch.cat([batch.tokens for batch in batches])[~spoken][: sources["text"].plan.rows]
    want = torch.cat([sources["text"].of_sequence(np.array([n])).tokens for n in range(sources["text"].plan.rows)])
    assert torch.equal(read, want)
    parts = [mixture.batch(7, range(r, r + 2)) for r in (0, 2)]
    assert torch.equal(batches[7].tokens, torch.cat([part.tokens for part in parts]))
    with pytest.raises(ValueError, match="share > 0"):
        MixtureSource(sources, {"text": 1.0, "speech": 0.0}, rows=4)
    with pytest.raises(ValueError, match="at least one row"):
        MixtureSource(sources, {"text": 1.0, "speech": 1e-6}, rows=4)


@pytest.fixture(scope="module")
def trained(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "r"
    flags = [f"--data.source={mixed}", f"--run.folder={folder}", "--budget=6steps", "--model.vocab=2150"]
    assert train([*TINY, *flags, "--data.mix", "train=0.5", "text=0.2", "speech=0.3"]) == 0
    return folder


def test_a_mixture_trains_and_counts_its_units(mixed: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    records = [r for r in read_records(trained / "metrics.jsonl") if "loss" in r]
    assert all(0.3 < r["speech_share"] < 0.98 for r in records)
    for only, decimal in (("speech", True), ("text", False)):
        assert generate.main([str(trained), "--tokens", "12", "--only", only, "--temperature", "2"]) == 0
        last = capsys.readouterr().out.strip().splitlines()[-1]
        assert last.strip() and all(word.isdecimal() for word in last.replace("<speech>", "").split()) == decimal
    for wrong, message in (("train", "want SPLIT=SHARE"), ("none=1", "no split 'none'"), ("train=0", "share > 0")):
        with pytest.raises(InputError, match=message):
            train([*TINY, f"--data.source={mixed}", "--model.vocab=2150", "--data.mix", wrong])


def test_endings_are_scored_among_the_ids_of_their_kind(trained: Path, tmp_path: Path, run) -> None:
    for number in range(3):
        for side, seconds in (("mutual", 0.6), ("correct", 0.5), ("incorrect", 0.7)):
            write_audio(tmp_path / "p" / f"{number}_{side}.wav", babble(seconds, number + int(10 * seconds)), RATE)
            (tmp_path / "p" / f"{number}_{side}.txt").write_text(f"the {side} boat {'went' * (side == 'correct')}")
    for prompt in ("speech", "text"):
        for ending in ("speech", "text"):
            flags = ["--pairs", tmp_path / "p", "--prompt", prompt, "--ending", ending, "--json", tmp_path / "r.json"]
            run("cross", trained, *flags)
            found = json.loads((tmp_path / "r.json").read_text())
            assert found["categories"]["all"]["pairs"] == 3 and found["left_out"] == []
    (tmp_path / "p" / "0_correct.txt").write_text(" ")
    _, errors = run("cross", trained, "--pairs", tmp_path / "p", "--ending", "text")
    assert "left out" in errors and "no text in it" in errors
    write_audio(tmp_path / "q" / "0_a.wav", babble(0.5, 1), RATE)
    write_audio(tmp_path / "q" / "1_b.wav", babble(0.5, 2), RATE)
    run("evaluate", trained, "--pairs", tmp_path / "q", "--only", "speech")
    (tmp_path / "p" / "1_incorrect.wav").unlink()
    _, errors = run("cross", trained, "--pairs", tmp_path / "p", expect=2)
    assert "without 1_incorrect.wav" in errors


def test_the_vocabulary_of_both(mixed: Path) -> None:
    _, tokenizer = opened(mixed)
    ids = tokenizer.encode("the old <speech> 3 99<text> boat")
    assert tokenizer.decode(ids.tolist()) == "the old <speech> 3 99 <text> boat"
    want = [Segment(text="the old"), Segment(units=np.array([3, 99])), Segment(text=" boat")]
    assert np.array_equal(ids, tokenizer.join(want)) and ids.max() < tokenizer.vocab == 2150
    assert tokenizer.byte_lengths()[ids].sum() == len("the old boat") + 2
    assert tokenizer.turn([tokenizer.eod], "text") == [tokenizer.eod, 2149]
    assert tokenizer.turn([0, 2148, 2049], "speech") == [0, 2148, 2049]
    with pytest.raises(InputError, match="numbers below 100"):
        tokenizer.encode("<speech> 100")


def test_what_cannot_be_aligned_is_left_out_and_named(mixed: Path, unit_set: Path, tmp_path: Path, run) -> None:
    words = mixed.parent / "words"
    kept = tmp_path / "words"
    for path in sorted(words.rglob("*.json"))[3:]:
        beside = kept / path.relative_to(words)
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(path.read_bytes())
    backwards = [{"word": "a", "start_time": 1, "end_time": 2}, {"word": " b", "start_time": 0, "end_time": 1}]
    (kept / "b" / "01.json").write_text(json.dumps({"aligned_text": backwards}))
    units, flags = (
        unit_set.parent / "units",
        ["--tokenizer", mixed.parent / "t.model", "--validation=0.1", "--test=0.1"],
    )
    _, errors = run("interleave", units, "-o", tmp_path / "set", "--alignments", kept, *flags)
    assert errors.count("left out") == 4 and "no alignment a/00.json" in errors and "order of their times" in errors
    _, errors = run("interleave", units, "-o", tmp_path / "s2", "--alignments", tmp_path, *flags, expect=2)
    assert "no alignment" in errors and not (tmp_path / "s2").exists()
    _, errors = run("interleave", units, "-o", tmp_path / "s3", "--alignments", kept, "--tokenizer", unit_set, expect=2)
    assert "want one of text" in errors
