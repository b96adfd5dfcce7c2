"""Blocks that do not compile, and devices that are full: what a run does instead, and that it computes the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

from hotplate.bench.faults import child
from hotplate.bench.faults.arena import Arena, checkpoints, ended, expect, expect_same, losses
from hotplate.bench.faults.launched import EXACT
from hotplate.bench.faults.scenario import Scenario
from hotplate.train.sinks import read_records

STEPS = 8
HALVE = "--guard.out-of-memory=halve"
NEAR = 1e-6 * 8  # nats: rounding of losses near 8, summed in another order


def _summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))["execution"]


def _expect_uncompiled(run: Path, text: str, cause: str) -> None:
    """One warning with the cause in its line, a record, and the summary say so."""
    said = [line for line in text.splitlines() if line.startswith("warning: --compile: ")]
    expect(len(said) == 1 and cause in said[0], f"want one warning about {cause!r}:\n{text[-3000:]}")
    found = _summary(run)
    expect(found["compiled"] is False and cause in found["compile_failure"], f"summary.json says {found}")
    noted = [record for record in read_records(run / "metrics.jsonl") if "compile_failure" in record]
    expect(len(noted) == 1 and noted[0]["compiled"] is False, f"metrics.jsonl says {noted}")


def no_compiler(arena: Arena, times: int) -> str:
    """No C++ compiler for torch.compile's code: an empty PATH, and a CXX that is not there."""
    absent = "/nonexistent"
    whole, run = arena.place("whole"), arena.place("run")
    ended(arena.nursery.start(arena.flags(whole, STEPS), PATH=absent))  # our own kernels may need a compiler, too
    flags = arena.flags(run, STEPS, "--compile")
    text = ended(arena.nursery.start(flags, PATH=absent, TORCHINDUCTOR_CACHE_DIR=f"{run}-cache"))
    _expect_uncompiled(run, text, "C++ compiler")
    expect_same(whole, run)
    if times > 1:  # torch reads CXX when it is loaded: a process of its own
        whole, run = arena.place("whole"), arena.place("run")
        arena.finish(whole, STEPS)
        flags = arena.flags(run, STEPS, "--compile")
        environment = {**os.environ, "CXX": f"{absent}/c++", "TORCHINDUCTOR_CACHE_DIR": f"{run}-cache"}
        command = [sys.executable, "-m", child.__name__, "then", *flags]
        done = subprocess.run(command, env=environment, stdout=PIPE, stderr=STDOUT, text=True, errors="replace")
        expect(done.returncode == 0, done.stdout[-3000:])
        _expect_uncompiled(run, done.stdout, "C++ compiler")
        expect_same(whole, run)
    return f"{times} runs: one warning with the cause, said in the log and the summary, bit-identical to uncompiled"


def broken_graph(arena: Arena, times: int) -> str:
    """A graph break in every block; with --guard.failed-compile stop it is an error."""
    whole = arena.place("whole")
    arena.finish(whole, STEPS)
    for _ in range(times):
        run = arena.place("run")
        text = arena.finish(run, STEPS, "--compile", faults=["break_graph"])
        _expect_uncompiled(run, text, "graph_break")
        expect_same(whole, run)
        run = arena.place("run")
        flags = ("--compile", "--guard.failed-compile=stop")
        text = arena.finish(run, STEPS, *flags, faults=["break_graph"], code=2)
        expect("error: --compile: " in text and "graph_break" in text, f"not said:\n{text[-2000:]}")
        expect(not checkpoints(run), "it trained")
    return f"{times} times: as above; with stop, exit 2 before the first update"


def broken_graph_on_one_rank(arena: Arena, times: int) -> str:
    """Rank 1 of 2 cannot compile: rank 0 must not either."""
    whole, run = arena.place("whole"), arena.place("run")
    code, text = arena.ranks(2, arena.flags(whole, STEPS))
    expect(code == 0, text[-3000:])
    code, text = arena.ranks(2, arena.flags(run, STEPS, "--compile"), ["break_graph:1"])
    expect(code == 0, text[-3000:])
    _expect_uncompiled(run, text, "rank 1: ")
    expect_same(whole, run)
    return "both ranks ran uncompiled, bit-identical to a run that never compiled"


def _expect_near(whole: Path, run: Path) -> float:
    """The largest difference between the losses of two runs."""
    pairs = list(zip(losses(whole), losses(run), strict=True))
    expect(all(a[0] == b[0] for a, b in pairs), "the steps differ")
    worst = max(abs(a[1] - b[1]) for a, b in pairs)
    expect(worst <= NEAR, f"losses differ by {worst}")
    return worst


def halving(arena: Arena, times: int) -> str:
    """torch's out-of-memory error in the first pass of the first update, in the second pass of a later one, and in
    several updates until a micro-batch is one row."""
    whole = arena.place("whole")
    arena.finish(whole, 16, EXACT)
    cases = [(["memory_in_pass:1:1"], [2]), (["memory_in_pass:12:2"], [1]), (["memory_in_pass:1-2:1"], [2, 1])]
    worst = 0.0
    for faults, sizes in cases[:times]:
        run = arena.place("run")
        more = () if faults[0].endswith(":1") else ("--micro-batch=2",)
        text = arena.finish(run, 16, EXACT, HALVE, *more, faults=faults)
        noted = [r["micro_batch"] for r in read_records(run / "metrics.jsonl") if "out_of_memory" in r]
        expect(noted == sizes, f"micro-batches {noted}, want {sizes}")
        expect(text.count("warning: update ") == len(sizes), f"not said:\n{text[-2000:]}")
        expect(_summary(run)["micro_batch"] == sizes[-1], "the summary does not say it")
        worst = max(worst, _expect_near(whole, run))
    run = arena.place("run")
    text = arena.finish(run, 16, HALVE, faults=["memory_in_pass:1-9:1"], code=2)
    expect("a micro-batch is one row already" in text, f"not said:\n{text[-2000:]}")
    return (
        f"{min(times, 3)} runs: the update repeated in smaller micro-batches, largest difference of a loss {worst:.1e} "
        "nats of 7.6; at one row: estimate by category, exit 2"
    )


def halving_together(arena: Arena, times: int) -> str:
    """Rank 1 of 2 runs out of memory in its second update."""
    whole, run = arena.place("whole"), arena.place("run")
    arena.finish(whole, STEPS, EXACT)
    code, text = arena.ranks(2, arena.flags(run, STEPS, EXACT, HALVE), ["memory_in_pass:2:1:1"])
    expect(code == 0 and "update 2: out of memory: on another rank" in text, text[-3000:])
    expect(_summary(run)["micro_batch"] == 1, "not halved")
    return (
        f"both repeated the update in halves, largest difference of a loss {_expect_near(whole, run):.1e} nats of 7.6"
    )


SCENARIOS = [
    Scenario(
        "R29",
        "out of memory, --guard.out-of-memory halve",
        "torch.OutOfMemoryError in a pass of the first and a later update, and in one update after another",
        "the same update from half the micro-batch and twice the accumulation; losses within 1e-6 of their size",
        halving,
        times=3,
        quick=2,
    ),
    Scenario(
        "R29",
        "out of memory on one rank, the same",
        "torch.OutOfMemoryError in a pass of rank 1 of 2 (torchrun, gloo)",
        "both ranks repeat the update in halves",
        halving_together,
        quick=1,
    ),
    Scenario(
        "R31",
        "--compile without a C++ compiler",
        "an empty PATH; a CXX that is not there; each with an empty compile cache",
        "before any weight changes: a warning, a record, uncompiled blocks",
        no_compiler,
        times=2,
        quick=1,
    ),
    Scenario(
        "R31",
        "--compile with a graph break",
        "a graph break in every block",
        "the same; an error under --guard.failed-compile stop",
        broken_graph,
        times=2,
        quick=1,
    ),
    Scenario(
        "R31",
        "--compile fails on one rank",
        "a graph break on rank 1 of 2 (torchrun, gloo)",
        "no rank compiles",
        broken_graph_on_one_rank,
    ),
]
