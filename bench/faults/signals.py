"""Signals in every phase, a second one, two owners of one folder, and a wall clock that jumps."""

import json
import os
import signal
import time

from hotplate.bench.faults.arena import PACKED, Arena, ended, expect, expect_same, step
from hotplate.bench.faults.scenario import Scenario
from hotplate.train.budget import Budget, Goodput, make_plan

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
PHASES = ("train", "evaluate", "save")
FLAGS = ("--run.checkpoint-every=0.1", "--evaluation.every=0.1")
STEPS = 20


def stopped(arena: Arena, times: int) -> str:
    """A real signal as the process enters a phase; then the run goes on and must end as if nothing had happened."""
    whole = arena.place("whole")
    arena.finish(whole, STEPS, *FLAGS)
    cases = [(name, phase) for phase in PHASES for name in NAMES][: times if times < 9 else 9]
    for name, phase in cases:
        run = arena.place(f"{name}-{phase}")
        text = arena.finish(run, STEPS, *FLAGS, faults=[f"signal_in_phase:{phase}:{name}"])
        note = json.loads((run / "preempted.json").read_text())
        expect(note["signal"] == name and f"stopped by {name}" in text, f"{name} in {phase}: {note}, {text[-500:]}")
        expect(0 < note["step"] < STEPS and step(run) == note["step"], f"{name} in {phase}: not saved where it stopped")
        arena.finish(run, STEPS, *FLAGS)
        expect(not (run / "preempted.json").exists(), "the mark stayed after the run went on")
        expect_same(whole, run)
    return f"{len(cases)} signals: step finished, saved, exit 0 and preempted.json; resumed bit-identical"


def second_signal(arena: Arena, times: int) -> str:
    """The second of two signals in a long step ends the process at once."""
    for _ in range(times):
        run = arena.place("run")
        child = arena.start(run, 10, faults=["sleep_at_step:3"])
        child.wait_for("step 2/")
        child.send(signal.SIGTERM)
        time.sleep(0.3)
        expect(child.poll() is None, "the first signal did not wait for the step")
        child.send(signal.SIGTERM)
        expect(child.wait(10) == -signal.SIGTERM, f"exit code {child.code}")
    return f"{times} times: the first waits for the step, the second ended the process at once"


def two_owners(arena: Arena, times: int) -> str:
    """A second process on a run folder in use; a third after the first was killed."""
    for _ in range(times):
        run = arena.place("run")
        first = arena.start(run, 100_000)
        first.wait_for("step 2/")
        text = arena.finish(run, 100_000, code=2)
        expect(f"in use by process {first.process} on {os.uname().nodename}" in text, text)
        first.send(signal.SIGKILL)
        first.wait()
        ended(arena.start(run, 100_000, "--dry-run"))
        third = arena.start(run, 100_000)
        third.wait_for("step 1/")
        third.send(signal.SIGKILL)
        third.wait()
    return f"{times} times: refused with the owner's process and host; free again after its death"


def leaping_clock(arena: Arena, times: int) -> str:
    """time.time() leaps by a day forth and back with every call; and a million tiny steps of a budget's arithmetic."""
    whole = arena.place("whole")
    arena.finish(whole, STEPS, *FLAGS, tiny=PACKED)
    for _ in range(times):
        run = arena.place("run")
        arena.finish(run, STEPS, *FLAGS, tiny=PACKED, faults=["jump_clock:86400"])
        expect_same(whole, run)
        paid = json.loads((run / "summary.json").read_text())["paid_seconds"]
        expect(sum(paid.values()) < 300 and min(paid.values()) >= 0, f"paid seconds follow the wall clock: {paid}")
    plan = make_plan(Budget("tokens", 1e6 * 64), 64, 1000.0)
    expect(plan.spent(plan.steps) == 1.0 and plan.step_at(1.0) == plan.steps == 1_000_000, "a million steps drift")
    meter, began = Goodput(), time.monotonic()
    for _ in range(100_000):
        meter.switch("train")
    drift = abs(meter.paid - (time.monotonic() - began))
    expect(drift < 0.05, f"{drift} s of drift over 100,000 switches")
    return f"{times} runs bit-identical, meters unmoved; 1,000,000 steps end exactly; drift {drift * 1e3:.2f} ms"


SCENARIOS = [
    Scenario(
        "R8",
        "SIGTERM, SIGINT or SIGUSR1 in a step, in validation, in a save",
        "a process signals itself as it enters the phase",
        "the step is finished and saved, exit code 0 and preempted.json; resumed bit-identical",
        stopped,
        times=9,
        quick=1,
    ),
    Scenario(
        "R8", "a second signal", "two SIGTERM in one long step", "the second ends the process", second_signal, 3, 1
    ),
    Scenario(
        "R21",
        "two processes on one run folder",
        "a second process while the first trains, a third after the first was killed",
        "the second exits with code 2 and names the owner; a dead owner blocks nobody",
        two_owners,
        times=3,
        quick=1,
    ),
    Scenario(
        "R24",
        "the wall clock jumps; a million tiny steps",
        "time.time() leaps a day forth or back with every call",
        "budget and meters follow the monotonic clock; no drift",
        leaping_clock,
        times=2,
        quick=1,
    ),
]
