"""Units as a data set: ids, durations, splits, full rows, and a run of the one trainer on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from speech_waves import RATE, babble
from tiny import TINY

from hotplate.model.cost import cost
from hotplate.train.budget import Budget, make_plan
from hotplate.train.commands import evaluate, generate
from hotplate.train.commands.train import main as train
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.sources import PackedSource
from hotplate.train.data.units import UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.settings import load_preset
from hotplate.train.speech.audio import write_audio
from hotplate.train.speech.encoder import Units, open_encoder
from hotplate.train.speech.prepare import StoreConfig, prepare_units, read_durations
from hotplate.train.speech.store import UnitFolder


@pytest.fixture(scope="module")
def trained(unit_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder after a few steps on the units."""
    folder = tmp_path_factory.mktemp("run") / "r"
    flags = [f"--data.source={unit_set}", f"--run.folder={folder}", "--budget=6steps", "--model.vocab=102"]
    assert train([*TINY, *flags]) == 0
    return folder


def test_ids_are_units_plus_two_between_boundaries(recordings: Path, unit_set: Path) -> None:
    dataset = Dataset.open(unit_set)
    units = {u.name: u for u in UnitFolder.open(unit_set.parent / "units").utterances()}
    assert (dataset.vocab, dataset.eod, set(dataset.splits)) == (102, 1, {"train", "validation", "test"})
    stored = {tuple(u.units.tolist()): u for u in units.values()}
    seen = 0
    for name in dataset.splits:
        split = dataset.split(name)
        for document in range(split.documents):
            inputs, targets = split.read(document)
            assert inputs[0] == targets[-1] == 1 and np.array_equal(inputs[1:], targets[:-1])
            utterance = stored[tuple((targets[:-1] - 2).tolist())]
            assert np.array_equal(read_durations(dataset, name, document), utterance.durations)
            seen += 1
        assert split.bytes == split.characters == split.tokens - split.documents
        assert split.shards[0].header.token_bytes == 2
        facts = dataset.manifest.source["durations"][name]
        assert facts["units_per_second"] == pytest.approx(split.bytes / facts["seconds"], rel=1e-2)
    assert seen == len(units) == 24


def test_the_tokenizer_of_units(unit_set: Path) -> None:
    tokenizer = Dataset.open(unit_set).tokenizer
    assert isinstance(tokenizer, UnitTokenizer) and tokenizer.fingerprint == open_encoder().description.fingerprint
    ids = tokenizer.encode("3 99 0")
    assert ids.tolist() == [5, 101, 2] and tokenizer.decode([1, *ids.tolist(), 0, 1]) == "3 99 0"
    assert tokenizer.byte_lengths().tolist() == [0, 0] + [1] * 100
    for wrong in ("100", "three", "-1"):
        with pytest.raises(InputError, match="numbers below 100"):
            tokenizer.encode(wrong)


def test_rows_are_full(tmp_path: Path) -> None:
    """Utterances of any length, 620 units on average, fill 99% of packed rows of 1,024 without touching."""
    random = np.random.default_rng(0)
    description = open_encoder().description
    folder = UnitFolder.create(tmp_path / "units", description)
    sizes = random.integers(40, 1200, 600)
    made = [Units(random.integers(0, 100, n).astype(np.uint16), np.ones(n, np.uint16)) for n in sizes]
    folder.write("0of1", [f"{n}.wav" for n in range(600)], [(f"{n}.wav", units) for n, units in enumerate(made)])
    dataset = prepare_units((str(tmp_path / "units"),), tmp_path / "set", StoreConfig())
    split, lengths = dataset.split("train"), dataset.tokenizer.byte_lengths()
    source = PackedSource(split, rows=8, window=1024, seed=0, byte_lengths=lengths, vocab=dataset.vocab)
    assert source.fill >= 0.99
    batch = source.batch(0, range(8))
    assert float(batch.weights.mean()) >= 0.97
    assert bool((batch.tokens[batch.positions == 0] == 1).any())


@pytest.mark.parametrize("preset, tokens", [("slam-a5000", 1.4e9), ("slam-scaled", 16.7e9)])
def test_presets_are_the_published_budgets(preset: str, tokens: float) -> None:
    """Tokens, and for the first its 17,625 steps, within 1% of the published; 358,347,904 parameters at 502 ids."""
    config = load_preset(preset)
    plan = make_plan(Budget.parse(config.budget), config.batch * config.data.window, config.tokens_per_second)
    assert plan.tokens == pytest.approx(tokens, rel=0.01)
    assert preset != "slam-a5000" or plan.steps == pytest.approx(17_625, rel=0.01)
    assert cost(config.model, config.data.window).parameters == 358_347_904
    assert (config.model.mixer.rope_theta, config.optimizer.lr * config.schedule.minimum) == (1e4, pytest.approx(5e-5))


def test_the_demo_fits_the_embedded_units() -> None:
    assert load_preset("slam-demo").model.vocab == open_encoder().description.units + 2


def test_a_run_on_units(trained: Path, unit_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trainer, its evaluation and its sampling read units as they read text."""
    assert evaluate.main([str(trained), "--json", str(trained / "e.json")]) == 0
    assert generate.main([str(trained), "--prompt", "3 4 5", "--tokens", "12"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("3 4 5") and all(int(unit) < 100 for unit in last[5:].split())


def test_pairs_under_a_run(trained: Path, tmp_path: Path, run) -> None:
    for number in range(6):
        write_audio(tmp_path / "pairs" / f"{number}_x.wav", babble(0.5, number), RATE)
    output, _ = run("evaluate", trained, "--pairs", tmp_path / "pairs", "--json", tmp_path / "found.json")
    assert "all" in output and "95% low" in output
    _, errors = run("evaluate", trained, "--pairs", tmp_path / "pairs", "--no-collapse", expect=2)
    assert "trained on units" in errors
    write_audio(tmp_path / "pairs" / "5_x.wav", babble(0.5, rate=8000), 8000)
    output, errors = run("evaluate", trained, "--pairs", tmp_path / "pairs", "--json", tmp_path / "found.json")
    assert "left out" in errors and "5_x.wav: 8000 Hz" in errors and "--resample" in errors
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["categories"]["all"]["pairs"] == 2 and len(found["left_out"]) == 1
    run("evaluate", trained, "--pairs", tmp_path / "pairs", "--resample", "--json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["categories"]["all"]["pairs"] == 3
    for number in range(6):
        (tmp_path / "pairs" / f"{number}_x.wav").write_bytes(b"RIFF")
    _, errors = run("evaluate", trained, "--pairs", tmp_path / "pairs", expect=2)
    assert "no pair can be used" in errors and "cannot read the audio" in errors


def test_damaged_units_are_refused(recordings: Path, tmp_path: Path, run) -> None:
    run("encode", recordings / "a", "-o", tmp_path / "units")
    shard = next((tmp_path / "units").glob("units-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    _, errors = run("prepare", tmp_path / "units", "-o", tmp_path / "set", expect=2)
    assert shard.name in errors and "encode again" in errors
    _, errors = run("prepare", tmp_path / "nothing", "-o", tmp_path / "set", expect=2)
    assert "units.json" in errors
