"""Gates against slower code: an unchanged tree passes, planted regressions are caught, and so are unrecorded gains."""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hotplate.bench.commands import gates, ratio
from hotplate.bench.gates import budgets, counts, gpu, instructions, pairs, worker
from hotplate.train.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = "qlstm eager"


def off(found: dict) -> list[str]:
    """What the gate says of these counts of the sample."""
    return gates.compare("counts", {SAMPLE: found})[SAMPLE]


@pytest.fixture(scope="module")
def unchanged() -> dict:
    return dataclasses.asdict(counts.measure(SAMPLE))


@pytest.mark.parametrize("workload", counts.workloads())
def test_a_step_asks_for_what_is_recorded(workload: str) -> None:
    if reason := counts.why_not(workload):
        pytest.skip(reason.splitlines()[0][:200])
    found = dataclasses.asdict(counts.measure(workload))
    assert gates.compare("counts", {workload: found}) == {workload: []}, "meant? hotplate bench gates --record"


@pytest.fixture(scope="module")
def on_gpu() -> dict:
    """Counts of every workload on the stand-in GPU."""
    if reason := gpu.why_not():
        pytest.skip(reason)
    return gpu.measure()


@pytest.mark.parametrize("workload", gpu.WORKLOADS)
def test_a_step_on_a_gpu_launches_what_is_recorded(workload: str, on_gpu: dict) -> None:
    found = {workload: on_gpu[workload]}
    assert gates.compare("gpu", found) == {workload: []}, "meant? hotplate bench gates --gate gpu --record"


def told(script: str) -> dict:
    """What a script says that plays a stand-in GPU."""
    if reason := gpu.why_not():
        pytest.skip(reason)
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_calls_launch_what_compiles_and_fits_a_gpu() -> None:
    found = told("cases_on_gpu.py")
    planted, counts = found["failed"].pop("planted call"), found["counts"]
    assert planted == "RuntimeError: does not run" and found["failed"] == {}
    assert counts["check-bfloat16"] + counts["check-float32"] > 40 and min(counts.values()) > 1


@pytest.fixture(scope="module")
def planted_on_gpu() -> dict:
    """What became of a step with a defect, by defect; of one without under "nothing"."""
    return told("planted_on_gpu.py")


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("the host waits", "aten._local_scalar_dense"),
        ("a program too large", "out of resource: shared memory"),
        ("double precision", "['factor'] are fp64"),
        ("no program", "0 x 1 x 1 programs"),
    ],
)
def test_a_step_that_a_gpu_would_not_run_well_fails(defect: str, message: str, planted_on_gpu: dict) -> None:
    assert message in planted_on_gpu[defect]


@pytest.mark.parametrize(
    ("defect", "count"), [("an operation", "torch.neg"), ("a launch", "triton.product"), ("memory", "peak_bytes")]
)
def test_what_a_step_on_a_gpu_does_besides_is_counted(defect: str, count: str, planted_on_gpu: dict) -> None:
    lines = budgets.differences(planted_on_gpu["nothing"], planted_on_gpu[defect], {})
    assert count in {line.split(":")[0] for line in lines}


def test_no_step_reads_back_to_the_host() -> None:
    """But in places that only a CPU has; and every eager form compiles into one graph."""
    for name, budget in budgets.load("counts")["workloads"].items():
        assert set(budget["host_syncs"]) <= set(counts.CPU_ONLY), name
        assert budget["graph_breaks"] == (0 if name.endswith("eager") else None), name


def test_the_record_is_of_the_versions_that_are_tested() -> None:
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.M)[1]
    assert budgets.load("counts")["versions"]["torch"] == pinned
    assert set(budgets.load("counts")["workloads"]) == set(counts.workloads())
    assert budgets.load("gpu")["versions"]["torch"] == pinned
    assert set(budgets.load("gpu")["workloads"]) == set(gpu.WORKLOADS)
    assert set(budgets.load("instructions")["workloads"]) == set(instructions.WORKLOADS)


PLANTED = {
    "host_syncs": lambda batch: batch.tokens.sum().item(),
    "operations": lambda batch: batch.tokens.neg(),
    "peak_bytes": lambda batch: torch.ones(1 << 20),
    "flops": lambda batch: torch.ones(8, 8) @ torch.ones(8, 8),
    "bytecodes": lambda batch: sum(i for i in range(2000)),
}


@pytest.mark.parametrize("count", PLANTED)
def test_a_planted_regression_is_caught(count: str, monkeypatch) -> None:
    """Something more in every step shows in the count that it is about."""
    plain = counts.Step.__call__

    def slower(self, batches, states, lr):
        kept = PLANTED[count](batches[0])
        result = plain(self, batches, states, lr)
        del kept
        return result

    monkeypatch.setattr(counts.Step, "__call__", slower)
    monkeypatch.setattr(counts, "graph_breaks", lambda *_: 0)
    assert any(line.startswith(count) for line in off(dataclasses.asdict(counts.measure(SAMPLE))))


def test_a_graph_break_is_caught(unchanged, monkeypatch) -> None:
    plain = counts.LanguageModel.forward

    def broken(self, batch, state=None):
        return plain(self, batch, None if batch.tokens.sum().item() > 3 else state)

    assert off(unchanged) == []
    monkeypatch.setattr(counts.LanguageModel, "forward", broken)
    assert off(unchanged | {"graph_breaks": counts.graph_breaks(*SAMPLE.split())}) != []


def test_an_unrecorded_gain_is_caught_too(unchanged) -> None:
    fewer = unchanged | {"operations": unchanged["operations"] | {"aten.mul": 1}, "flops": 0}
    assert [line.split(":")[0] for line in off(fewer)] == ["flops", "operations.aten.mul"]
    assert off(unchanged | {"bytecodes": round(1.01 * unchanged["bytecodes"])}) == []
    assert len(off(unchanged | {"bytecodes": round(0.9 * unchanged["bytecodes"])})) == 1


def test_recording_makes_the_gate_pass(unchanged, tmp_path: Path) -> None:
    budgets.save("counts", gates.versions(), {SAMPLE: unchanged}, tmp_path)
    assert budgets.load("counts", tmp_path) == {"versions": gates.versions(), "workloads": {SAMPLE: unchanged}}
    assert budgets.load("nothing", tmp_path)["workloads"] == {}


@pytest.mark.parametrize("content", ["<<<<<<< HEAD\n{}", '{"versions": {}}'])
def test_a_damaged_record_is_to_be_restored(tmp_path: Path, content: str) -> None:
    (tmp_path / "counts.json").write_text(content)
    with pytest.raises(InputError, match=r"counts\.json: .*; restore it: git checkout"):
        budgets.load("counts", tmp_path)


def test_the_command_fails_where_something_differs(unchanged, monkeypatch, capsys) -> None:
    monkeypatch.setattr(counts, "workloads", lambda: [SAMPLE])
    monkeypatch.setattr(counts, "measure", lambda _: counts.Counts(**unchanged))
    assert gates.main(["--gate", "counts"]) == 0
    monkeypatch.setattr(counts, "measure", lambda _: counts.Counts(**unchanged | {"flops": 1}))
    assert gates.main(["--gate", "counts"]) == 1
    out = capsys.readouterr().out
    assert "as recorded  counts: qlstm eager" in out and "flops" in out and "machine code" in out


@pytest.mark.skipif(instructions.why_not() is not None, reason=str(instructions.why_not()))
def test_valgrind_counts_what_a_repetition_adds() -> None:
    """A loop of twice the length has twice the instructions, whatever starting Python takes."""
    code = "import sys\nfor _ in range(int(sys.argv[1])):\n    sum(range({}))"
    found = []
    for length in (200_000, 400_000):
        few, many = (instructions._count(code.format(length), n) for n in (1, 3))
        found.append((many - few) / 2)
    assert found[1] / found[0] == pytest.approx(2, rel=0.01)
    recorded = {"instructions": round(found[0])}
    margins = {"instructions": instructions.MARGIN}
    assert budgets.differences(recorded, {"instructions": round(1.005 * found[0])}, margins) == []
    assert budgets.differences(recorded, {"instructions": round(1.02 * found[0])}, margins)


def arms(true: float, deviation: float, seed: int):
    """Times of two trees whose ratio is `true`, with normal noise in the logarithm and a tenth of it four times so."""
    draw = random.Random(seed)

    def clock(mean: float):
        return lambda: mean * math.exp(draw.gauss(0, deviation * (4 if draw.random() < 0.1 else 1)))

    return clock(true), clock(1.0)


@pytest.mark.parametrize(
    ("true", "deviation", "verdict"), [(1.0, 0.02, "no slower"), (1.1, 0.02, "slower"), (0.85, 0.02, "faster")]
)
def test_pairs_decide_where_noise_is_small(true: float, deviation: float, verdict: str) -> None:
    assert {pairs.compare(*arms(true, deviation, seed)).verdict for seed in range(20)} == {verdict}


def test_an_unchanged_tree_is_called_slower_less_often_than_stated() -> None:
    verdicts = [pairs.compare(*arms(1.0, 0.2, seed)).verdict for seed in range(400)]
    assert verdicts.count("slower") <= 400 * pairs.ALPHA and "inconclusive" in verdicts
    at_the_edge = [pairs.compare(*arms(pairs.SLOWER, 0.05, seed)).verdict for seed in range(400)]
    assert at_the_edge.count("slower") <= 400 * pairs.ALPHA


def test_both_trees_come_first_equally_often() -> None:
    order: list[str] = []

    def clock(name: str):
        return lambda: order.append(name) or 1.0

    pairs.compare(clock("head"), clock("base"), seed=0, looks=(pairs.LOOKS[0],))
    first = order[::2]
    assert first.count("head") == first.count("base") == pairs.LOOKS[0] / 2


def test_both_trees_are_timed_over_as_many_steps(monkeypatch) -> None:
    """Also where the first step of one took longer."""
    asked: dict[str, set[int]] = {"head": set(), "base": set()}

    def timed(tree: Path, name: str, attempt: int):
        tree_name = "head" if tree == ROOT else "base"

        def ask(steps: int) -> float:
            asked[tree_name].add(steps)
            return steps * (0.01 if tree_name == "head" else 0.03)

        return contextlib.nullcontext(ask)

    monkeypatch.setattr(ratio, "timed", timed)
    ratio._slower("gpt-nano", Path("base"), 0.3, 0)
    assert asked == {"head": {1, 10}, "base": {1, 10}}


def test_the_interval_encloses_the_median_as_often_as_it_says() -> None:
    for n in pairs.LOOKS:
        r = pairs.rank(n, 0.05)
        missed = 2 * sum(math.comb(n, k) for k in range(r)) / 2**n
        assert missed <= 0.05 < 2 * sum(math.comb(n, k) for k in range(r + 1)) / 2**n
    assert pairs.rank(3, 0.01) == 0
    assert pairs.judge([0.5, 0.5, 0.5], 0.01).verdict == "inconclusive"


def test_two_processes_time_one_tree() -> None:
    """The whole way: workers start, take turns and end; what they find is not asserted, a machine may be busy."""
    with ratio.timed(ROOT, "gpt-nano") as head, ratio.timed(ROOT, "qlstm-nano") as base:
        found = pairs.compare(lambda: head(1), lambda: base(1), looks=(3,))
    assert found.pairs == 3 and found.verdict == "inconclusive" and found.ratio > 0


def test_a_tree_without_the_model_decides_nothing(tmp_path: Path, capsys) -> None:
    with (
        pytest.raises(InputError, match="no steps of gpt-nano: "),
        ratio.timed(tmp_path, "gpt-nano"),
    ):
        pass
    assert ratio._slower("gpt-nano", tmp_path, 0.0, 0) is False
    assert "inconclusive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("times", "code"), [(["slower", "slower"], 1), (["slower", "no slower"], 0), (["inconclusive"], 0)]
)
def test_only_twice_slower_blocks(times: list[str], code: int, monkeypatch) -> None:
    verdicts = iter(times)
    monkeypatch.setattr(pairs, "compare", lambda *_, **__: pairs.Finding(next(verdicts), 1.1, 1.05, 1.2, 20))
    monkeypatch.setattr(ratio, "timed", lambda *_: contextlib.nullcontext(lambda steps: 0.0))
    assert ratio.main(["--self-test", "--models", "gpt-nano"]) == code


@pytest.mark.skipif(sys.platform != "linux", reason="personality(2) is of Linux")
def test_workers_have_the_same_addresses() -> None:
    """Of a library, and of what is allocated early."""

    def run(code: str) -> str:
        command = [sys.executable, "-P", "-c", code]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    allowed = f"import ctypes; print(ctypes.CDLL(None).personality({worker.ADDR_NO_RANDOMIZE}))"
    if run(allowed).strip() == "-1":
        pytest.skip("personality(2) is not allowed here")
    code = f"import sys; sys.path.insert(0, {str(Path(worker.__file__).parent)!r}); import ctypes, worker; "
    code += "in_a_library = ctypes.addressof(ctypes.c_int.in_dll(ctypes.CDLL(None), 'optind')); "
    code += "print(worker.fix_addresses(), id(object()), in_a_library)"
    first, second = run(code), run(code)
    assert first.startswith("True ") and first == second


def test_a_worker_is_run_by_its_path() -> None:
    assert "hotplate.bench" not in (ROOT / "bench" / "gates" / "worker.py").read_text(), "an older tree may lack it"
    assert sys.version_info >= (3, 11), "-P"
