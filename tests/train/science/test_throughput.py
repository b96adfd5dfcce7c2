"""The throughput command: a bounded search that survives what does not fit, its cache, and its tables."""

import csv
import json
import time
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from hotplate.model.presets import PRESETS
from hotplate.train.commands import guarded, throughput
from hotplate.train.commands import tune as tune_command
from hotplate.train.config import ExecutionConfig, TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.ranks import Ranks
from hotplate.train.science import batch_search
from hotplate.train.science.batch_search import Row, is_out_of_memory, search, try_rows
from hotplate.train.throughput import TIMED_STEPS, Throughput
from hotplate.train.tune import tune, tuned

CPU = Ranks(0, 1, torch.device("cpu"))
SMALL = replace(PRESETS["gpt-nano"], layers=1, width=32, ffn=64, vocab=64)
CONFIG = TrainConfig(model=SMALL, device="cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, speeds: dict[int, float | BaseException]) -> list[int]:
    """Replace the measurement by a table of tokens/s by rows; the list fills with the rows asked for."""
    asked: list[int] = []

    def measure(model, optimizer, ranks, precision, execution, *, rows, window, micro_batches, seconds):
        asked.append(rows)
        speed = speeds[rows]
        if isinstance(speed, BaseException):
            raise speed
        samples = 3 if seconds < 1e9 else TIMED_STEPS
        tokens = micro_batches * rows * window
        second = tokens / speed
        return Throughput(tokens, second, second, 0.0, samples, 1 << 20, 2 << 20)

    monkeypatch.setattr(batch_search, "measure", measure)
    return asked


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_CACHE", str(tmp_path / "cache"))


def look(limit: int = 64, **changes):
    return search("m", replace(CONFIG, **changes), CPU, limit=limit, seconds=60.0, refresh=False)


def test_the_fastest_batch_wins_not_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {1: 10.0, 2: 18.0, 4: 30.0, 8: 29.0, 16: 28.0, 32: 99.0})
    found = look()
    assert found.best.rows == 4 and asked == [1, 2, 4, 8, 16, 4]  # two that are no faster end it; the best in full
    assert found.best.samples == TIMED_STEPS


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_ends_the_search_only(monkeypatch, error: BaseException, capsys) -> None:
    pretend(monkeypatch, {1: 10.0, 2: 18.0, 4: error})
    found = look()
    assert is_out_of_memory(error) and found.best.rows == 2
    assert [row.out_of_memory for row in found.tried] == [False, False, True]
    told = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told[:3] == ["10 tok/s", "18 tok/s", "no room"]


def test_other_errors_are_not_hidden_and_nothing_fitting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {1: RuntimeError("shape mismatch")})
    with pytest.raises(RuntimeError, match="shape mismatch"):
        look()
    pretend(monkeypatch, {1: MemoryError()})
    with pytest.raises(InputError, match="not even one row"):
        look()


def test_on_a_cpu_an_estimate_beyond_the_free_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {1: 10.0})
    monkeypatch.setattr(batch_search, "_free_memory", lambda: 1e6)
    assert try_rows("m", CONFIG, CPU, 1, 1.0).out_of_memory and not asked


def test_results_are_cached_by_model_and_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = pretend(monkeypatch, {1: 10.0, 2: 20.0})
    first = look(limit=2)
    assert look(limit=2) == first and asked == [1, 2, 2]
    look(limit=2, model=replace(SMALL, ffn=96))
    assert len(asked) == 6
    monkeypatch.setattr(batch_search, "environment", lambda device: {**first.environment, "revision": "another"})
    look(limit=2)
    assert len(asked) == 9
    for path in (tmp_path / "cache" / "throughput").iterdir():
        path.write_text("{")
    look(limit=2)  # a damaged file is made again
    assert len(asked) == 12


def test_a_real_measurement_fills_every_column(tmp_path: Path) -> None:
    began = time.perf_counter()
    row = try_rows("m", replace(CONFIG, precision="fp32"), CPU, 2, float("inf"))
    spent = time.perf_counter() - began
    assert row.samples == TIMED_STEPS and not row.out_of_memory
    assert row.tokens_per_second == pytest.approx(2 * 512 * 1e3 / row.median_step_ms)
    assert row.samples * row.mean_step_ms / 1e3 < spent  # the warm-up is outside
    assert row.mfu_causal is None  # no peak is known for a CPU
    assert row.model_mib == pytest.approx(row.parameters * 4 / 2**20)


def test_the_command_writes_rows_and_shows_what_classes_buy(monkeypatch, tmp_path: Path, capsys) -> None:
    pretend(monkeypatch, {1: 1000.0, 2: 2000.0})
    numbers, table = tmp_path / "t.json", tmp_path / "t.csv"
    flags = ["--limit", "2", "--classes", "1h", "--window", "32", "--json", str(numbers), "--csv", str(table)]
    assert throughput.main(["gpt-nano", "qlstm-nano", *flags]) == 0
    assert "7.2M" in capsys.readouterr().out  # 2,000 tokens/s for an hour
    assert json.loads(numbers.read_text())["gpt-nano"]["best"]["rows"] == 2
    rows = list(csv.DictReader(table.open()))
    assert [(row["model"], row["rows"], row["best"]) for row in rows] == [
        (model, rows, best) for model in ("gpt-nano", "qlstm-nano") for rows, best in (("1", "False"), ("2", "True"))
    ]
    assert set(rows[0]) == {*Row.__dataclass_fields__, "best"}


def test_a_reference_card_is_looked_up(monkeypatch, capsys) -> None:
    pretend(monkeypatch, {})
    assert throughput.main(["gpt-small", "--reference", "rtx3090", "--classes", "6h"]) == 0
    out = capsys.readouterr().out
    assert "55,416" in out and "1.2G" in out and "gpt-mini" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "want one or more models"),
        (["gpt-nan"], "did you mean gpt-nano"),
        (["gpt-nano", "--classes", "3steps"], "want accelerator time"),
        (["gpt-nano", "--limit", "0"], "want both above zero"),
        (["gpt-xl", "--reference", "RTX 3090"], "nothing published of gpt-xl"),
        (["--reference", "RTX 3080"], "did you mean RTX 3090"),
    ],
)
def test_mistakes_are_refused(arguments: list[str], message: str, capsys) -> None:
    assert guarded(throughput.main, arguments) == 2
    assert message in capsys.readouterr().err


def look_for_micro_batch(batch: int = 12, **changes):
    config = replace(CONFIG, batch=batch, **changes)
    return tune("m", config, CPU, seconds=60.0, refresh=False, compiled=False).best[1]


def test_tuning_takes_the_fastest_divisor_and_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {1: 10.0, 2: 30.0, 3: 40.0, 4: 35.0, 6: 39.0, 12: 99.0})
    found = look_for_micro_batch()
    assert found.best.rows == 3 and asked == [1, 2, 3, 4, 6], "two that are no faster end it"
    assert [row.micro_batches for row in found.tried] == [4, 4, 4, 3, 2]
    assert look_for_micro_batch() == found and len(asked) == 5, "cached"
    assert look(limit=2).best.rows == 2, "the protocol's search has a cache of its own"
    look_for_micro_batch(batch=2)
    assert asked[-2:] == [1, 2], "another update, another search"


def test_tuning_survives_what_does_not_fit_and_refuses_a_chosen_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {1: 10.0, 2: 18.0, 3: torch.OutOfMemoryError("CUDA out of memory")})
    assert look_for_micro_batch().best.rows == 2
    with pytest.raises(InputError, match="--micro-batch 4 is chosen already"):
        look_for_micro_batch(micro_batch=4)
    assert tuned("m", replace(CONFIG, batch=12, execution=ExecutionConfig(tune=True)), CPU).micro_batch == 2


def test_the_tune_command_measures_whole_updates(tmp_path: Path, monkeypatch, capsys) -> None:
    """Graphs are captured, and run without Inductor, whose code others test: here it would only take its time."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    flags = ["--train.batch=2", "--train.data.window=16", "--train.model.layers=1", "--train.model.vocab=64"]
    path = tmp_path / "t.json"
    flags += ["--train.execution.threads=1", "--train.device=cpu"]
    assert tune_command.main(["gpt-nano", *flags, f"--json={path}"]) == 0
    plain, compiled = json.loads(path.read_text())
    assert [row["rows"] * row["micro_batches"] for row in plain["tried"]] == [2, 2]
    assert not plain["execution"]["compile"] and compiled["execution"]["compile"]
    best = max(plain["best"], compiled["best"], key=lambda row: row["tokens_per_second"])
    assert f"--micro-batch {best['rows']}" in capsys.readouterr().out


def test_tuning_recomputes_where_rows_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(model, optimizer, ranks, precision, execution, *, rows, window, micro_batches, seconds):
        asked.append((rows, execution.compile, execution.recompute))
        if rows == 3 and not execution.recompute:
            raise torch.OutOfMemoryError("CUDA out of memory")
        speed = {1: 10.0, 2: 18.0, 3: 50.0}[rows] * (0.8 if execution.recompute else 1.0)
        return Throughput(rows * window, rows * window / speed, 1.0, 0.0, 3, 1 << 20, 2 << 20)

    monkeypatch.setattr(batch_search, "measure", measure)
    config = replace(CONFIG, batch=3, execution=ExecutionConfig(tune=True))
    found = tuned("m", config, CPU)
    assert found.micro_batch == 3 and found.execution == ExecutionConfig(recompute=True)
    assert asked == [(1, False, False), (3, False, False), (1, False, True), (3, False, True)]
