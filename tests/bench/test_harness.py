import json
import time

import pytest
import torch

from hotplate.bench import harness, registry
from hotplate.bench.commands.bench import main, table
from hotplate.bench.harness import Case, Rates, Row, WrongResult, checked, error, floor_ms, measure
from hotplate.train.environment import environment
from hotplate.train.errors import InputError

FIELDS = {
    *("bench", "case", "provider", "device", "dtype", "ms_median", "ms_p20", "ms_p80", "floor_ms"),
    *("tokens_per_s", "peak_bytes", "max_err"),
}


def toy(**providers):
    """Doubling a vector; providers are name -> function of the vector."""
    return Case(
        bench="toy",
        name="double",
        device="cpu",
        dtype=torch.float32,
        prepare=lambda: torch.arange(1.0, 5.0),
        truth=lambda x: [2 * x.double()],
        providers=providers,
        tolerance=1e-6,
        tokens=4,
        moved_bytes=32,
        flops=4,
    )


def test_rows_say_who_did_what_how_fast():
    def slow(x):
        time.sleep(0.003)
        return [x + x]

    rows = measure(toy(fast=lambda x: [2 * x], slow=slow), rounds=5)
    assert [row.provider for row in rows] == ["fast", "slow"]
    for row in rows:
        assert set(vars(row)) >= FIELDS
        assert (row.bench, row.case, row.device, row.dtype) == ("toy", "double", "cpu", "float32")
        assert 0 < row.ms_p20 <= row.ms_median <= row.ms_p80
        assert row.tokens_per_s == pytest.approx(4e3 / row.ms_median)
        assert row.floor_ms > 0 and row.peak_bytes is None and row.max_err == 0
    assert rows[1].ms_median >= 3 > rows[1].cpu_ms_median


def test_providers_take_turns():
    calls = []

    def provider(name):
        return lambda x: (calls.append(name), [2 * x])[1]

    measure(toy(a=provider("a"), b=provider("b")), rounds=6)
    assert calls == ["a", "b"] * 7  # once to check, six rounds


def test_a_long_case_makes_do_with_fewer_rounds(monkeypatch):
    monkeypatch.setattr(harness, "CASE_SECONDS", 0.0)
    calls = []
    measure(toy(a=lambda x: (calls.append(1), [2 * x])[1]), rounds=100)
    assert len(calls) == 1 + harness.MIN_ROUNDS


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: [2 * x + 1e-4],
        lambda x: [2 * x * float("nan")],
        lambda x: [2 * x[:3]],
        lambda x: [(2 * x)[None]],
        lambda x: [],
        lambda x: [2 * x, 2 * x],
    ],
)
def test_a_wrong_provider_stops_the_case_before_anything_is_timed(monkeypatch, wrong):
    monkeypatch.setattr(harness, "_time_cpu", lambda call: pytest.fail("timed"))
    with pytest.raises(WrongResult, match=r"toy\[double-cpu-float32\]: error above 1e-06: wrong .*not timed"):
        measure(toy(right=lambda x: [2 * x], wrong=wrong), rounds=5)


def test_error_is_a_share_of_the_norm_of_the_worst_result():
    truth = [torch.tensor([3.0, 4.0]).double(), torch.tensor([1.0]).double()]
    assert error([torch.tensor([3.0, 4.5]), torch.tensor([1.0])], truth) == pytest.approx(0.1)
    assert error([torch.tensor([3.0, 4.0]), torch.tensor([0.5])], truth) == pytest.approx(0.5)
    assert error([torch.zeros(1)], [torch.zeros(1).double()]) == 0


def test_the_floor_is_the_slower_of_traffic_and_arithmetic():
    rates = Rates(copy_bytes_per_s=1e3, matmul_flops_per_s=1e2)
    assert floor_ms(toy(), rates) == 40.0  # 4 flops beat 32 bytes
    bare = Case("toy", "bare", "cpu", torch.float32, lambda: None, lambda _: [], {}, 0.0)
    assert floor_ms(bare, rates) is None


def test_rates_are_measured_once():
    rates = harness.measured_rates("cpu", torch.float32)
    assert rates.copy_bytes_per_s > 1e8 and rates.matmul_flops_per_s > 1e8
    assert harness.measured_rates("cpu", torch.float32) is rates


def test_the_machine_is_named():
    record = environment(torch.device("cpu"))
    assert record["name"] and record["cores"] >= 1 and record["versions"]["torch"] == torch.__version__
    assert harness.result_path(harness.Path("r"), {"name": "AMD EPYC (x)", "date": "2026-01-02T03"}).name == (
        "amd-epyc-x-2026-01-02.json"
    )


def test_the_command_writes_what_it_shows(tmp_path, capsys):
    path = tmp_path / "deep" / "rows.json"
    assert main(["newton_schulz", "--quick", "--json", str(path)]) == 0
    body = json.loads(path.read_text())
    assert {"name", "cores", "threads", "python", "versions", "revision", "date"} <= set(body["machine"])
    assert {row["provider"] for row in body["rows"]} == {"eager", "reference"}
    assert all(set(row) >= FIELDS for row in body["rows"])
    assert "newton_schulz" in capsys.readouterr().out


def test_the_command_fails_when_a_provider_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(registry, "cases", lambda *_: [toy(wrong=lambda x: [x])])
    assert main(["qlstm", "--quick"]) == 1
    assert "not timed" in capsys.readouterr().err


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
    rows = [
        Row("b", "c", provider, "cpu", "float32", ms, ms, ms, ms, None, None, None, 0.0)
        for provider, ms in (("ours", 2.0), ("peer", 5.0))
    ]
    assert list(table(rows).columns[5].cells) == ["1.00", "2.50"]
