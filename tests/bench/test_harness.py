import dataclasses
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from toys import FIELDS, a_row, rates_of_a_moment, toy  # noqa: F401

from hotplate.bench import rates, results, timing
from hotplate.bench.harness import KEPT, OURS, Case, NotTimed, error, floor_ms
from hotplate.bench.rates import Rates
from hotplate.bench.timing import measure, peak_bytes
from hotplate.train import heap
from hotplate.train.environment import environment, processor

pytestmark = pytest.mark.usefixtures("rates_of_a_moment")


def test_rows_say_who_did_what_how_fast():
    def slow(x):
        time.sleep(0.003)
        return [x + x]

    case = toy(fast=lambda x: [2 * x], slow=slow)
    rows = [results.row(case, name, samples) for name, samples in measure(case, rounds=5).items()]
    assert [row.provider for row in rows] == ["fast", "slow"]
    for row in rows:
        assert set(vars(row)) >= FIELDS
        assert (row.bench, row.case, row.device, row.dtype) == ("toy", "double", "cpu", "float32")
        assert 0 < row.ms_p20 <= row.ms_median <= row.ms_p80
        assert row.tokens_per_s == pytest.approx(4e3 / row.ms_median)
        assert row.floor_ms > 0 and row.max_err == 0
        assert row.floor_share == row.floor_ms / row.ms_median
        assert row.bytes_per_s == pytest.approx(32e3 / row.ms_median)
        assert row.flops_per_s == pytest.approx(4e3 / row.ms_median)
        assert row.mtokens_per_hour is None, "of whole steps only"
    assert rows[1].ms_median >= 3 > rows[1].cpu_ms_median


@pytest.fixture
def noted(tmp_path):
    """(writes a line, reads all lines): providers run in other processes."""
    path = tmp_path / "notes"

    def note(*words) -> None:
        with path.open("a") as file:
            print(*words, file=file)

    return note, lambda: [line.split() for line in path.read_text().splitlines()]


def test_providers_take_turns_each_in_a_process_of_its_own(noted):
    note, lines = noted

    def provider(name):
        return lambda x: (note(name, os.getpid()), [2 * x])[1]

    measure(toy(a=provider("a"), b=provider("b")), rounds=6)
    names = [name for name, _ in lines()]
    assert names == ["a", "b"] + ["a", "a", "b", "b"] * 6 + ["a", "b"]  # checked; rounds, every second timed; memory
    assert len({tuple(line) for line in lines()}) == 2 and str(os.getpid()) not in {pid for _, pid in lines()}
    assert not multiprocessing.active_children()


def test_a_long_case_makes_do_with_fewer_rounds(monkeypatch):
    monkeypatch.setattr(timing, "CASE_SECONDS", 0.0)
    found = measure(toy(a=lambda x: [2 * x]), rounds=100)
    assert len(found["a"].wall) == len(found["a"].busy) == timing.MIN_ROUNDS


def test_every_process_prepares_the_same():
    drawn = dataclasses.replace(toy(a=lambda x: [2 * x], b=lambda x: [2 * x]), prepare=lambda: torch.randn(5))
    assert {samples.error for samples in measure(drawn, rounds=5).values()} == {0.0}


@pytest.mark.skipif(not heap.adjustable(), reason="this C library has no mallopt")
def test_ours_run_with_memory_kept_and_peers_as_they_are_installed(noted):
    """Page faults of a block that glibc gives back by itself."""
    note, lines = noted
    pages = (64 << 20) // (2 << 20)  # of the largest size there is

    def provider(name):
        def call(x):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.empty(16 << 20).fill_(1.0)
            note(name.replace(" ", "-"), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            return [2 * x]

        return call

    peer, kept = "peer", f"peer{KEPT}"
    measure(toy(**{name: provider(name) for name in ("native", peer, kept)}), rounds=9)
    faults = {name: [int(n) for who, n in lines() if who == name.replace(" ", "-")] for name in ("native", peer, kept)}
    timed = {name: statistics.median(taken[-18:-1:2]) for name, taken in faults.items()}  # before them checks, settling
    assert timed["native"] < pages and timed[kept] < pages and timed[peer] >= pages, timed
    assert {"native", "hotplate"} <= OURS


def test_a_provider_that_ends_stops_the_case(capfd):
    case = toy(right=lambda x: [2 * x], dying=lambda x: os._exit(7))
    with pytest.raises(NotTimed, match=r"toy\[double-cpu-float32\]: dying ended without an answer, exit code 7"):
        measure(case, rounds=5)
    with pytest.raises(NotTimed, match="raising ended without an answer, exit code 1"):
        measure(toy(raising=lambda x: [x @ torch.ones(3)]), rounds=5)
    assert "inconsistent tensor size" in capfd.readouterr().err
    assert not multiprocessing.active_children()


ORPHAN = """
import os, torch
from hotplate.bench import apart
apart.POLL_SECONDS = 0.1
child = apart.start("child", lambda: lambda question: question)
assert child.ask("here") == "here"
print(child.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


ANEW = """
import os
from functools import partial
import torch
from hotplate.bench import rates
from hotplate.bench.apart import Ended, computed_anew
if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.ones(1 << 22).exp()
    rates.CPU_SIDES, rates.CPU_BYTES = (64,), 12 << 20
    print(rates.measured_rates("cpu", torch.float32).bytes_per_s > 0)
    try:
        computed_anew("a process", partial(os._exit, 3))
    except Ended as reason:
        print(reason)
"""


def test_rates_are_measured_after_threads_have_computed(tmp_path):
    """A fork of such a process would wait for its threads without end."""
    script = tmp_path / "anew.py"
    script.write_text(ANEW)
    out = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, timeout=120).stdout
    assert out.splitlines() == ["True", "a process ended without an answer"]


def test_no_process_outlives_the_one_that_asks():
    out = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, timeout=60).stdout
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(out)}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{int(out)}").exists()


def test_the_memory_of_a_call_is_what_it_takes_at_once():
    if (idle := peak_bytes(lambda: None, torch.device("cpu"))) is None:
        pytest.skip("the system does not let a process reset its high-water mark")
    assert idle < 8 << 20
    taken = peak_bytes(lambda: (torch.ones(16 << 20), torch.ones(16 << 20)), torch.device("cpu"))
    assert 120 << 20 <= taken < 144 << 20  # within what an idle call may show
    one_by_one = peak_bytes(lambda: [torch.ones(16 << 20).sum() for _ in range(2)], torch.device("cpu"))
    assert 56 << 20 <= one_by_one < 80 << 20


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
def test_a_wrong_provider_stops_the_case_before_anything_is_timed(noted, wrong):
    note, lines = noted
    with pytest.raises(NotTimed, match=r"toy\[double-cpu-float32\]: error above 1e-06: wrong .*not timed"):
        measure(toy(right=lambda x: (note("called"), [2 * x])[1], wrong=wrong), rounds=5)
    assert len(lines()) == 1


def test_error_is_a_share_of_the_norm_of_the_worst_result():
    truth = [torch.tensor([3.0, 4.0]).double(), torch.tensor([1.0]).double()]
    assert error([torch.tensor([3.0, 4.5]), torch.tensor([1.0])], truth) == pytest.approx(0.1)
    assert error([torch.tensor([3.0, 4.0]), torch.tensor([0.5])], truth) == pytest.approx(0.5)
    assert error([torch.zeros(1)], [torch.zeros(1).double()]) == 0


def test_the_floor_is_the_slower_of_traffic_and_arithmetic():
    measured = Rates(memory={"copy": 500.0, "in place": 1e3, "read": 800.0}, matmul_flops_per_s=1e2)
    assert floor_ms(toy(), measured) == 40.0  # 4 flops beat 32 bytes
    assert floor_ms(dataclasses.replace(toy(), flops=None), measured) == 32.0  # at the fastest kind of pass
    bare = Case("toy", "bare", "cpu", torch.float32, lambda: None, lambda _: [], {}, 0.0)
    assert floor_ms(bare, measured) is None


def test_rates_are_measured_once_over_whole_tensors():
    measured = rates.measured_rates("cpu", torch.float32)
    assert min(*measured.memory.values(), measured.matmul_flops_per_s) > 1e8
    assert rates.measured_rates("cpu", torch.float32) is measured
    moved = {kind: moved for kind, (moved, _) in rates.passes(120, "cpu").items()}
    assert moved == {"read": 120, "write": 120, "copy": 120, "in place": 240, "two into a third": 160}
    assert set(moved) == set(measured.memory)


def test_the_machine_is_named():
    record = environment(torch.device("cpu"))
    assert record["name"] and record["cores"] >= 1 and record["versions"]["torch"] == torch.__version__
    assert results.path_for({"name": "AMD EPYC (x)", "date": "2026-01-02T03"}).name == "amd-epyc-x-2026-01-02.json"


@pytest.mark.parametrize("halves", [False, True])
def test_rates_of_bf16_are_of_fp32_copies_where_the_processor_does_not_multiply_it(monkeypatch, halves):
    """There torch's products of bf16 may take minutes."""
    seen = set()
    monkeypatch.setattr(rates, "takes_halves", lambda dtype: halves)
    monkeypatch.setattr(rates, "multiply", lambda left, right, out: seen.add(left.dtype))
    monkeypatch.setattr(rates, "CPU_SIDES", (8,))
    monkeypatch.setattr(rates, "CPU_BYTES", 1 << 10)
    monkeypatch.setattr(rates, "computed_anew", lambda name, function: function())
    monkeypatch.setattr(rates, "measured_rates", cache(rates.measured_rates.__wrapped__))
    found = rates.measured_rates("cpu", torch.bfloat16)
    assert seen == {torch.bfloat16 if halves else torch.float32}
    assert (rates.measured_rates("cpu", torch.float32) is found) != halves


def test_processors_of_one_name_are_told_apart(tmp_path):
    info = tmp_path / "cpuinfo"
    one = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\nflags\t\t: fpu vme\n\n"
    found = []
    for model in (1, 17):
        info.write_text(2 * one.format(model))
        found.append(processor(info))
    assert found == ["AMD EPYC, family 25 model 1", "AMD EPYC, family 25 model 17"]
    info.write_text("processor\t: 0\nmodel name\t: ARMv8 Processor rev 1\n")
    assert processor(info) == "ARMv8 Processor rev 1"
    info.write_text("processor\t: 0\n")
    assert processor(info) and processor(tmp_path / "absent") == processor(info)


class Event:
    """A CUDA event: notes when it is recorded."""

    def __init__(self, notes) -> None:
        self.notes = notes

    def record(self) -> None:
        self.notes.append("event")

    def synchronize(self) -> None: ...

    def elapsed_time(self, other) -> float:
        return 3.0


@pytest.mark.parametrize("whole", [False, True])
def test_on_a_gpu_the_host_gets_a_lead_before_a_kernel_and_none_before_a_step(monkeypatch, whole):
    notes = []
    fakes = {"Event": lambda enable_timing: Event(notes), "synchronize": lambda device=None: notes.append("wait")}
    fakes |= {"_sleep": lambda cycles: notes.append(cycles)}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(timing, "peak_bytes", lambda call, device: 7)
    monkeypatch.setattr(timing, "_apart", timing._together)

    def slow(x):
        time.sleep(0.004)
        notes.append("call")
        return [2 * x]

    found = measure(dataclasses.replace(toy(slow=slow), whole=whole), rounds=5)["slow"]
    assert found.wall == [3.0] * 5 and found.busy == [] and found.peak_bytes == 7 and 4 <= found.host_ms < 100
    lead = [] if whole else [int(min(2 * found.host_ms, 50) * timing.CYCLES_PER_MS)]
    assert notes == ["call", "wait", "call", "wait"] + [*lead, "event", "call", "event"] * 5
    row = results.row(toy(), "slow", found)
    assert row.host_ms == found.host_ms
