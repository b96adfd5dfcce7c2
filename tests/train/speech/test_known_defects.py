"""Defects of the published SlamKit code, each with the test that ours does not have it.

| defect | test |
| --- | --- |
| codebooks cached under one file name | `test_codebooks_of_one_file_name_are_told_apart` |
| sampling without the paper's repetition penalty | `test_continuations_have_the_published_penalty` |
| a checkpoint is saved only with a model hub at hand | `test_runs_and_exports_need_no_hub_and_no_other_trainer` |
| training breaks with newer transformers and trl | `test_runs_and_exports_need_no_hub_and_no_other_trainer` |
| units depend on the padding of their batch | test_units: `test_units_do_not_depend_on_the_batch` |
| units that are not collapsed cannot be written | `test_frames_that_are_not_collapsed_become_json` |
| an output path without a folder fails | test_extract: `test_an_output_without_a_folder` |
| documented triplets are not those that are read | `test_the_documented_triplets_are_the_ones_read` |
| DPO at another schedule than the paper's | `test_preference_has_the_published_schedule` |
| id 0 of text is taken for padding | `test_id_0_of_text_is_scored_and_learned` |
| scoring edits the caller's ids | test_pairs: `test_scores_are_means_over_units_and_the_end` |
| measures read files of any sample rate | test_unit_data: `test_pairs_under_a_run` |
| interleaving is drawn without a seed | test_interleave: `test_draws_repeat_and_differ_between_epochs` |
| wrong endings are drawn without a seed | test_synthesis: `test_the_same_seed_makes_the_same_set` |
| tokens are stored as text | test_unit_data: `test_ids_are_units_plus_two_between_boundaries` |
| a run begins by tokenising every document | `test_a_run_on_units_begins_without_tokenising` |
| warm-up counted from epochs of the data | `test_warm_up_is_counted_from_the_budget` |
| packages missing from the requirements | `test_imports_are_declared_and_optional_ones_say_how_to_install` |
| texts and judgements shift after a failure | `test_a_failure_shifts_no_judgement` |
| whole files are encoded at once | `test_a_long_file_is_encoded_in_bounded_parts`; \
test_extract: `test_long_audio_is_cut_where_it_is_quiet` |
"""

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from speech_waves import RATE, babble
from tiny import ROOT, TINY

from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.budget import Budget, Plan, make_plan
from hotplate.train.config import ScheduleConfig
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.pairs import PairSource, read_pairs
from hotplate.train.data.sources import PackedSource
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.data.units import UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.schedule import factor, shape
from hotplate.train.settings import load_preset, merge
from hotplate.train.speech import judge as judging
from hotplate.train.speech.audio import write_audio
from hotplate.train.speech.codebook import EMBEDDED, Codebook
from hotplate.train.speech.continuation import ContinueConfig
from hotplate.train.speech.encoder import UnitEncoder, open_encoder
from hotplate.train.speech.extract import ExtractConfig, extract
from hotplate.train.speech.judge import JudgeConfig, judge
from hotplate.train.speech.likelihood import sequence_scores
from hotplate.train.speech.preferences import PARTS, encode_preferences
from hotplate.train.speech.recognise import open_recogniser
from hotplate.train.speech.spoken import Draw
from hotplate.train.speech.store import UnitFolder


def test_codebooks_of_one_file_name_are_told_apart(tmp_path: Path) -> None:
    """Same name, same shape, other centroids: other units, another fingerprint, and never one folder."""
    centroids = Codebook.read(EMBEDDED).centroids
    encoders = []
    for folder, values in (("a", centroids), ("b", centroids[::-1])):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "kmeans.npy", values)
        encoders.append(open_encoder(codebook=str(tmp_path / folder / "kmeans.npy")))
    first, second = (encoder.encode_one(babble(1)).units.astype(int) for encoder in encoders)
    assert np.array_equal(first, len(centroids) - 1 - second) and not np.array_equal(first, second)
    assert encoders[0].description.fingerprint != encoders[1].description.fingerprint
    write_audio(tmp_path / "x.wav", babble(1), RATE)
    extract((str(tmp_path / "x.wav"),), tmp_path / "units", encoders[0], ExtractConfig())
    with pytest.raises(InputError, match="fingerprint"):
        extract((str(tmp_path / "x.wav"),), tmp_path / "units", encoders[1], ExtractConfig())


def test_continuations_have_the_published_penalty() -> None:
    config = ContinueConfig()
    assert (config.repetition_penalty, config.top_k, config.temperature) == (1.1, 25, 0.8)


ALONE = """
import socket, sys
def refuse(*arguments, **options): raise AssertionError(f"the network: {arguments}")
socket.socket.connect = socket.getaddrinfo = refuse
for name in ("transformers", "trl", "accelerate", "datasets", "huggingface_hub"): sys.modules[name] = None
from hotplate.train.commands import hf
from hotplate.train.commands.train import main as train
folder, flags = sys.argv[1], sys.argv[2:]
assert train([*flags, f"--run.folder={folder}/start", "--budget=1steps"]) == 0
dpo = [f"--preference.pairs={folder}/pairs.jsonl", f"--run.start={folder}/start", "--budget=2steps"]
assert train([*flags, *dpo, f"--run.folder={folder}/dpo"]) == 0
assert hf.main(["export", f"{folder}/dpo", "-o", f"{folder}/hf", "--family=llama"]) == 0
"""


def test_runs_and_exports_need_no_hub_and_no_other_trainer(unit_set: Path, tmp_path: Path) -> None:
    """Training, DPO, their checkpoints and an export where no connection and no trainer's package can be had."""
    pair = {"prompt": {"units": [1, 2]}, "chosen": {"units": [3, 4, 5]}, "rejected": {"units": [6]}}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 4)
    flags = [*TINY, f"--data.source={unit_set}", "--model.vocab=102", "--evaluation.every=0", "--batch=2"]
    command = [sys.executable, "-c", ALONE, str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "hf" / "config.json").is_file() and list((tmp_path / "dpo").rglob("*.safetensors"))


def triplets(folder: Path) -> Path:
    """One triplet of wav files."""
    for k, part in enumerate(PARTS):
        write_audio(folder / f"{part}.wav", babble(0.5 + 0.1 * k, k), RATE)
    (folder / "preferences.jsonl").write_text(json.dumps({f"{part}_path": f"{part}.wav" for part in PARTS}))
    return folder


def test_frames_that_are_not_collapsed_become_json(tmp_path: Path) -> None:
    encoder = open_encoder(collapse=False)
    encode_preferences(triplets(tmp_path), tmp_path / "u.jsonl", encoder)
    row = json.loads((tmp_path / "u.jsonl").read_text().splitlines()[1])
    assert row["prompt"]["durations"] == [1] * 12 and len(row["prompt"]["units"]) == 12
    pair = read_pairs(tmp_path / "u.jsonl", UnitTokenizer(tmp_path, encoder.description))[0]
    assert (pair.prompt - 2).tolist() == row["prompt"]["units"]


def test_the_documented_triplets_are_the_ones_read(tmp_path: Path) -> None:
    """A file written from the page alone is read, and what `preferences` writes has the page's names."""
    page = (ROOT / "docs" / "speech.md").read_text()
    found = re.search(r"each line of its output has\s+(.*?), with the texts", page, re.DOTALL)
    assert found is not None
    names = re.findall(r"`(\w+)`", found[1])
    assert names == ["prompt", "chosen", "rejected", "units", "durations"]
    encoder = open_encoder()
    encode_preferences(triplets(tmp_path), tmp_path / "u.jsonl", encoder)
    row = json.loads((tmp_path / "u.jsonl").read_text().splitlines()[1])
    assert all(set(row[part]) == set(names[3:]) for part in names[:3])
    written = {part: {"units": [k, k + 1], "durations": [1, 1]} for k, part in enumerate(names[:3])}
    (tmp_path / "mine.jsonl").write_text(json.dumps(written))
    pair = read_pairs(tmp_path / "mine.jsonl", UnitTokenizer(tmp_path, encoder.description))[0]
    assert [pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist()] == [[2, 3], [3, 4], [4, 5]]


def test_preference_has_the_published_schedule() -> None:
    """813 steps from 5e-5 after 100 of warm-up end at 1.75e-5; the preset falls by the same law."""
    published = ScheduleConfig(kind="inverse_sqrt", warmup_steps=100)
    rates = [5e-5 * factor(published, step, Plan(813, 64, None)) for step in (49, 99, 399, 812)]
    assert rates == pytest.approx([2.5e-5, 5e-5, 2.5e-5, 1.7536e-5], rel=1e-4)
    preset = load_preset("slam-demo-preference").schedule
    assert factor(preset, 59, Plan(60, 64, None)) == pytest.approx(math.sqrt(0.1))


def test_id_0_of_text_is_scored_and_learned(tmp_path: Path) -> None:
    """In likelihoods, in packed rows and in preference pairs, id 0 is a token like any other."""
    tiny = {"layers": 1, "width": 32, "ffn": 64, "vocab": 22, "mixer": {"heads": 2, "kv_heads": 1, "head_width": 16}}
    model = LanguageModel.build(merge(PRESETS["decoder-nano"], tiny, "test"), seed=1)
    ids = np.array([1, 0, 5, 0, 0, 7, 0])
    means = [sequence_scores(model, [ids[: n + 1]])[0] for n in range(1, len(ids))]
    sums = np.array(means) * np.arange(1, len(ids))
    assert (np.diff(sums, prepend=0) < -1e-3).all()  # each id's own log-probability, zeros' too
    documents = [np.array([0, 3, 0, 0, 4]), np.array([0]), np.array([5, 0])]
    tokenizer = SimpleNamespace(eod=1, vocab=22)
    made = Draw(documents, tokenizer)  # type: ignore[arg-type]
    source = PackedSource(made, rows=1, window=11, seed=0, byte_lengths=np.ones(22, np.int32), vocab=22)
    batch = source.batch(0, range(1))
    assert int((batch.targets[batch.weights > 0] == 0).sum()) == 5
    (tmp_path / "p.jsonl").write_text('{"prompt": [0, 4], "chosen": [0, 0, 5], "rejected": [6, 0]}')
    pairs = read_pairs(tmp_path / "p.jsonl", SimpleNamespace(vocab=22, fingerprint="f"))  # type: ignore[arg-type]
    paired = PairSource(pairs, rows=1, window=32, seed=0, eod=1, shared=False, where="test")
    batch = paired.batch(0, range(1))
    assert batch.targets[batch.weights > 0].tolist() == [0, 0, 5, 1, 6, 0, 1]


def test_a_run_on_units_begins_without_tokenising(unit_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a data set and making a batch asks no tokeniser for ids."""

    def refuse(*arguments):
        raise AssertionError("tokenised")

    monkeypatch.setattr(UnitTokenizer, "encode", refuse)
    monkeypatch.setattr(Tokenizer, "encode", refuse)
    dataset = Dataset.open(unit_set)
    lengths = dataset.tokenizer.byte_lengths()
    source = PackedSource(dataset.split("train"), rows=2, window=64, seed=0, byte_lengths=lengths, vocab=dataset.vocab)
    assert int(source.batch(0, range(2)).tokens.max()) >= 2


@pytest.mark.parametrize("steps", [200, 17_625])
def test_warm_up_is_counted_from_the_budget(steps: int) -> None:
    """1% of the steps that are paid for, whatever the data; a count of steps is kept as it is."""
    config = load_preset("slam-a5000")
    plan = make_plan(Budget.parse(f"{steps}steps"), config.batch * config.data.window, config.tokens_per_second)

    def rise(schedule: ScheduleConfig, step: int) -> float:
        return factor(schedule, step, plan) / shape(schedule, plan.spent(step + 1))

    whole = math.ceil(0.01 * steps)
    assert rise(config.schedule, whole - 1) == pytest.approx(1) and rise(config.schedule, whole - 2) < 1
    counted = ScheduleConfig(warmup_steps=100)
    assert rise(counted, 99) == pytest.approx(1) and rise(counted, 98) == pytest.approx(0.99)


def test_imports_are_declared_and_optional_ones_say_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rooms of speech import at their head is required by setup.py; others are named when absent."""
    required = (ROOT / "setup.py").read_text().partition("install_requires=[")[2].partition("]")[0]
    known = {re.split(r"[<>=]", line)[0] for line in re.findall(r'"([^"]+)"', required)} | {"hotplate"}
    for path in [*(ROOT / "train" / "speech").glob("*.py"), ROOT / "train" / "commands" / "speech.py"]:
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                assert name in known, f"{path.name} imports {name}"
    for package in ("hama", "pocketsphinx"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match="pip install hama"):
        open_encoder("phones")
    with pytest.raises(InputError, match="pip install pocketsphinx"):
        open_recogniser("pocketsphinx")


def test_a_failure_shifts_no_judgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that fail or say nothing, between others: every loss and repetition stays with its own text."""
    said = {"a": "one", "b": None, "c": "two words", "d": "", "e": "so so so so", "f": None, "g": "last"}
    for number, name in enumerate(said):
        write_audio(tmp_path / f"{name}.wav", babble(0.5 + 0.1 * number, number), RATE)

    class Hears:
        def transcribe(self, wave: np.ndarray) -> str:
            text = list(said.values())[round(10 * (len(wave) / RATE - 0.5))]
            if text is None:
                raise InputError("the service failed")
            return text

    monkeypatch.setattr(judging, "open_recogniser", lambda name: Hears())
    monkeypatch.setattr(judging, "text_losses", lambda run, texts: [float(len(text)) for text in texts])
    found = judge((str(tmp_path),), JudgeConfig(language_model="none"))
    losses = {name: (facts["text"], facts["loss"]) for name, facts in found["transcripts"].items()}
    assert losses == {f"{name}.wav": (text, len(text)) for name, text in said.items() if text}
    repeated = {name: facts["auto_bleu2"] for name, facts in found["transcripts"].items()}
    assert [name for name, share in repeated.items() if share > 0] == ["e.wav"]
    assert found["files"] == 4 and len(found["failed"]) == 2 and found["nothing_understood"] == ["d.wav"]


def test_a_long_file_is_encoded_in_bounded_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """90 seconds with parts of 5 and batches of 20: the encoder never sees more, and nothing is lost."""
    write_audio(tmp_path / "long.wav", np.tile(babble(9), 10), RATE)
    sizes: list[int] = []
    whole = UnitEncoder.encode

    def watched(encoder: UnitEncoder, wave: np.ndarray, length: np.ndarray):
        sizes.append(wave.size)
        assert wave.shape[1] <= 5 * RATE
        return whole(encoder, wave, length)

    monkeypatch.setattr(UnitEncoder, "encode", watched)
    config = ExtractConfig(vad=True, longest=5, batch_seconds=20)
    extract((str(tmp_path / "long.wav"),), tmp_path / "units", open_encoder(), config)
    assert max(sizes) <= 20 * RATE and len(sizes) >= 4
    utterances = UnitFolder.open(tmp_path / "units").utterances()
    assert sum(int(each.durations.sum()) for each in utterances) > 0.9 * 90 * 25
