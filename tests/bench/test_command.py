"""`hotplate bench`: what it times, writes, adds to and refuses."""

import dataclasses
import json
import os

import pytest
import torch
from toys import FIELDS, a_row, rates_of_a_moment, toy  # noqa: F401

from hotplate.bench import plots, registry, results, timing
from hotplate.bench.commands.bench import CASES, OUT_OF_TIME, main
from hotplate.bench.harness import checked
from hotplate.bench.table import table
from hotplate.train.environment import environment
from hotplate.train.errors import InputError

pytestmark = pytest.mark.usefixtures("rates_of_a_moment")


@pytest.fixture
def not_a_worker(monkeypatch):
    """pytest-benchmark measures nothing in a process that xdist started, and asks the environment."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


def test_the_command_writes_what_it_shows(tmp_path, capsys, not_a_worker):
    path = tmp_path / "deep" / "rows.json"
    assert main(["newton_schulz", "--quick", "--json", str(path)]) == 0
    body = json.loads(path.read_text())
    assert {"name", "cores", "threads", "python", "versions", "revision", "date"} <= set(body["machine"])
    assert {row["provider"] for row in body["rows"]} == {"eager", "published", "reference"}
    assert all(set(row) >= FIELDS for row in body["rows"])
    assert "newton_schulz" in capsys.readouterr().out
    machine, rows = results.read(path)
    assert machine == body["machine"] and [vars(row) for row in rows] == body["rows"]
    assert path.with_name("rows-floor.png").stat().st_size > 1000
    path.write_text("{}")
    with pytest.raises(InputError, match=r"rows.json: not a result file"):
        results.read(path)


@pytest.fixture
def two_cases(monkeypatch):
    """Of one benchmark, each with two providers."""
    providers = {"right": lambda x: [2 * x], "other": lambda x: [x + x]}
    cases = [dataclasses.replace(toy(**providers), name=name) for name in ("first", "second")]
    monkeypatch.setattr(registry, "cases", lambda *_: cases)
    return cases


def timed(path):
    return [(row.case, row.provider) for row in results.read(path)[1]]


def test_the_command_times_what_it_is_asked_for(tmp_path, two_cases, not_a_worker):
    path = tmp_path / "rows.json"
    main(["qlstm", "--quick", "--json", str(path), "--case", "sec"])
    assert timed(path) == [("second", "right"), ("second", "other")]
    main(["qlstm", "--quick", "--json", str(path), "--only", "right", "nobody"])
    assert timed(path) == [("first", "right"), ("second", "right")]
    main(["qlstm", "--quick", "--json", str(path), "--without", "right"])
    assert timed(path) == [("first", "other"), ("second", "other")]


def test_rows_are_added_to_a_file_whatever_ended_the_run_before(tmp_path, monkeypatch, two_cases, not_a_worker):
    path = tmp_path / "rows.json"
    ask = ["qlstm", "--quick", "--json", str(path)]
    measured = timing.measure

    def broken(case, rounds):
        if case.name == "second":
            raise KeyboardInterrupt
        return measured(case, rounds)

    monkeypatch.setattr(timing, "measure", broken)
    monkeypatch.setattr("hotplate.bench.conftest.pytest_terminal_summary", lambda config: None)
    main(ask)
    before = results.read(path)[1]
    assert timed(path) == [("first", "right"), ("first", "other")]
    monkeypatch.undo()
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(registry, "cases", lambda *_: two_cases)
    assert main([*ask, "--add", "--seconds", "0"]) == OUT_OF_TIME
    assert results.read(path)[1] == before
    assert main([*ask, "--add"]) == 0
    assert results.read(path)[1][:2] == before
    assert timed(path)[2:] == [("second", "right"), ("second", "other")]


def test_rows_are_added_to_those_of_the_same_machine_only(tmp_path):
    path = tmp_path / "rows.json"
    with pytest.raises(InputError, match="--add, but to no file"):
        main(["qlstm", "--add"])
    results.write(path, [a_row()], environment(torch.device("cpu")) | {"revision": "another"})
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"rows.json: its rows were made with another revision"):
        main(["qlstm", "--add", "--json", str(path)])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["rows.json"]


def test_pytest_benchmark_keeps_what_was_measured(tmp_path, not_a_worker):
    """Its own file, from which its comparisons are made, holds the interleaved rounds of the row."""
    path = tmp_path / "theirs.json"
    flags = ["--benchmark-only", "--benchmark-quiet", "--quick", "--rooms=newton_schulz", f"--benchmark-json={path}"]
    assert pytest.main([str(CASES), "--import-mode=importlib", "-q", "-p", "no:cacheprovider", *flags]) == 0
    kept = json.loads(path.read_text())["benchmarks"]
    assert [one["extra_info"]["row"]["provider"] for one in kept] == ["eager", "published", "reference"]
    for one in kept:
        assert 1e3 * one["stats"]["median"] == pytest.approx(one["extra_info"]["row"]["ms_median"])
        assert one["stats"]["rounds"] == len(one["stats"]["data"]) == timing.MIN_ROUNDS


def test_plots_show_floors_and_steps(tmp_path):
    rows = [a_row(bench="step", provider=name, tokens_per_s=2.0, floor_share=0.5) for name in ("ours", "peer")]
    found = plots.write(tmp_path / "r.json", rows, {"name": "m", "date": "2026-01-02"})
    assert [path.name for path in found] == ["r-floor.png", "r-steps.png"]
    assert plots.write(tmp_path / "r.json", [a_row()], {"name": "m", "date": "2026-01-02"}) == []


def test_the_command_fails_when_a_provider_is_wrong(monkeypatch, capsys, not_a_worker):
    monkeypatch.setattr(registry, "cases", lambda *_: [toy(wrong=lambda x: [x])])
    assert main(["qlstm", "--quick"]) == 1
    assert "not timed" in capsys.readouterr().out


def test_the_command_names_what_it_knows():
    with pytest.raises(InputError, match="no benchmark called qlstn; known: .*qlstm"):
        main(["qlstn"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_command_asks_for_no_gpu_that_is_not_there():
    with pytest.raises(InputError, match="use --device cpu"):
        main(["qlstm", "--device", "cuda"])


@pytest.mark.parametrize("name", registry.names())
def test_every_small_case_computes_what_it_says(name):
    cases = registry.cases(name, "cpu", quick=True)
    assert cases
    for case in cases:
        assert next(iter(case.providers)) in ({"hotplate"} if name == "step" else {"native", "eager"})
        checked(case)


def test_the_table_compares_with_the_first_provider():
    shown = table([a_row(), a_row(provider="peer", ms_median=5.0)])
    assert list(shown.columns[5].cells) == ["1.00", "2.50"]
