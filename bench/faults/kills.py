"""SIGKILL: at file events of a save, at random moments, before growth is saved, and again and again."""

import json
import random
import time
from pathlib import Path

from hotplate.bench.faults.arena import (
    TOKENS_PER_STEP,
    Arena,
    checkpoints,
    ended,
    expect,
    expect_same,
    losses,
    records,
    step,
    trainer,
)
from hotplate.bench.faults.scenario import Scenario
from hotplate.train import checkpoint

KILLED = -9
SEED = 20261125
WHOLE_SECONDS = 3600.0  # of a soak's run without kills, on a machine that does other work, too


def killed_while_saving(arena: Arena, times: int) -> str:
    """A kill at a random file event under checkpoints/, resumed by the same command, `times` times in one run."""
    drawn, steps = random.Random(SEED), 30
    whole = arena.place("whole")
    arena.finish(whole, steps, "--run.checkpoint-every=0.05")
    kills = removed = rounds = 0
    while kills < times:
        broken = arena.place("broken")
        rounds += 1
        while True:
            before = checkpoints(broken)
            files = [] if kills == times else [f"kill_at_file:{broken}/checkpoints:{drawn.randint(1, 60)}"]
            child = arena.start(broken, steps, "--run.checkpoint-every=0.05", faults=files)
            code = child.wait()
            expect(code in (0, KILLED), f"exit code {code}:\n{child.text[-3000:]}")
            found, problems = checkpoint.newest(broken / "checkpoints")
            expect(not problems, f"a committed checkpoint is not whole: {problems}")
            expect(not before or (found is not None and step(broken) >= _number(before[-1])), "a checkpoint was lost")
            if "half-written" in child.text:
                removed += 1
            if code == 0:
                break
            kills += 1
        expect_same(whole, broken)
        expect(not _leftovers(broken), f"left behind: {_leftovers(broken)}")
    return (
        f"{kills} kills over {rounds} runs: the newest complete checkpoint was found each time, half-written ones were "
        f"removed and reported {removed} times, every run ended bit-identical to the uninterrupted one"
    )


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _leftovers(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("step-")]


def killed_at_a_step(arena: Arena, times: int) -> str:
    """SIGKILL before a random update, compared with an uninterrupted run."""
    drawn, steps = random.Random(SEED + 1), 24
    whole = arena.place("whole")
    arena.finish(whole, steps, "--run.checkpoint-every=0.1")
    for trial in range(times):
        broken = arena.place("broken")
        at = drawn.randint(2, steps) if trial else 2  # the first before there is any checkpoint
        child = arena.start(broken, steps, "--run.checkpoint-every=0.1", faults=[f"kill_at_step:{at}"])
        expect(child.wait() == KILLED, "the process was not killed")
        arena.finish(broken, steps, "--run.checkpoint-every=0.1")
        expect_same(whole, broken)
        facts = [
            {k: v for k, v in trainer(checkpoints(r)[-1]).items() if k in ("step", "tokens")} for r in (whole, broken)
        ]
        expect(facts[0] == facts[1], f"the meters differ: {facts}")
        rates = [[record["learning_rate"] for record in records(run)] for run in (whole, broken)]
        expect(rates[0] == rates[1], "the learning rates differ")
    return f"{times} runs: losses, weights, moments, carried state, generators, rates and tokens bit-identical"


def spent_over_kills(arena: Arena, times: int) -> str:
    """Random kills of one run; meters read from outside after each."""
    drawn, steps, log = random.Random(SEED + 2), 200 * times, "--run.log-steps=20"
    flags = (f"--run.checkpoint-every={20 / steps}", log)
    broken = arena.place("broken")
    paid, tokens, outside, slack = 0.0, 0, 0.0, 0.0
    for _ in range(times):
        child = arena.start(broken, steps, *flags)
        began = time.monotonic()
        time.sleep(drawn.uniform(0.3, 1.2))
        child.send(9)
        child.wait()
        outside += time.monotonic() - began
        slack += 1.5  # the last sign of life is at most a second old, and comes after reading the checkpoint
        now, done = _paid(broken), step(broken) * TOKENS_PER_STEP
        expect(now >= paid and done >= tokens, f"a meter ran backwards: {paid} to {now} s, {tokens} to {done} tokens")
        paid, tokens = now, done
    expect(paid <= outside + 0.1, f"{paid:.2f} s were counted, {outside:.2f} s were lived: some are counted twice")
    expect(paid >= outside - slack, f"{paid:.2f} s were counted, {outside:.2f} s were lived: some are lost")
    began = time.monotonic()
    arena.finish(broken, steps, *flags)
    outside += time.monotonic() - began
    last = trainer(checkpoints(broken)[-1])
    expect(last["tokens"] == steps * TOKENS_PER_STEP, f"{last['tokens']} tokens instead of {steps * TOKENS_PER_STEP}")
    summary = json.loads((broken / "summary.json").read_text())
    total = sum(summary["paid_seconds"].values())
    expect(total <= outside + 0.1, f"{total:.2f} s paid of {outside:.2f} s lived")
    return (
        f"{times} kills: tokens exact, both meters monotone, {total:.1f} of {outside:.1f} seconds lived are accounted "
        f"for, {summary['paid_seconds'].get('lost', 0.0):.1f} of them as lost"
    )


def _paid(run: Path) -> float:
    """Seconds that the last sign of life counts."""
    from hotplate.train.watchdog import Life, place

    life = Life.read(place(run, 0))
    return 0.0 if life is None else sum(life.paid_seconds.values())


def killed_while_growing(arena: Arena, times: int) -> str:
    """A model that grows half-way, killed around the first checkpoints of the large one."""
    drawn, steps = random.Random(SEED + 3), 12
    grow = ("--grow-at=0.5", "--growth.factors.ffn=2", "--run.checkpoint-every=0.125")
    whole = arena.place("whole")
    arena.finish(whole, steps, *grow)
    small = large = kills = 0
    for _ in range(times):
        broken = arena.place("broken")
        fault = [f"kill_at_file:{broken}/checkpoints:{drawn.randint(20, 120)}"]
        code = arena.start(broken, steps, *grow, faults=fault).wait()
        expect(code in (0, KILLED), f"exit code {code}")
        kills += code == KILLED
        found, problems = checkpoint.newest(broken / "checkpoints")
        expect(not problems, f"not whole: {problems}")
        if found is not None:
            wide = max(x.shape[0] for name, x in found.model.items() if "mlp" in name or "ffn" in name)
            grown = found.trainer["model"]["ffn"]
            small, large = small + (grown == 48), large + (grown == 96)
            expect(wide in (48, 96, 2 * 96), f"shapes of {wide} rows belong to neither model")
        arena.finish(broken, steps, *grow)
        expect_same(whole, broken)
    return f"{kills} kills: {small} times the small model was found, {large} times the large one, never a mixture"


def soak(arena: Arena, cycles: int, steps: int, longest: float, say=lambda text: None) -> dict[str, object]:
    """kill -9 at a random moment and resume, `cycles` times; then the run is finished and compared."""
    drawn, began = random.Random(SEED + 4), time.monotonic()
    flags = (f"--run.checkpoint-every={10 / steps}", "--run.log-steps=10")
    broken, whole = arena.place("broken"), arena.place("whole")
    at: list[int] = []
    tokens, before_training = 0, 0
    for cycle in range(cycles):
        child = arena.start(broken, steps, *flags)
        # Near the end of the run processes die while they start: there must be something left to do for the last one.
        time.sleep(drawn.uniform(0.0, longest if tokens < 0.9 * steps * TOKENS_PER_STEP else longest / 8))
        child.send(9)
        expect(child.wait() == KILLED, f"cycle {cycle}: exit code {child.code}:\n{child.text[-3000:]}")
        before_training += "\nstep " not in child.text
        for name in ("warning", "error", "Traceback"):
            expect(name not in child.text, f"cycle {cycle}: {child.text[-3000:]}")
        done = step(broken)
        expect(done * TOKENS_PER_STEP >= tokens, f"cycle {cycle}: the run went back")
        expect(
            not checkpoints(broken) or trainer(checkpoints(broken)[-1])["tokens"] == done * TOKENS_PER_STEP, "tokens"
        )
        tokens = done * TOKENS_PER_STEP
        at.append(done)
        if cycle % 50 == 49:
            say(f"{cycle + 1} kills, step {done} of {steps}, {time.monotonic() - began:.0f} s")
    expect(at[-1] < steps, "the run ended before the last kill: take more steps")
    for run in (broken, whole):
        ended(arena.start(run, steps, *flags), seconds=WHOLE_SECONDS)
    expect_same(whole, broken)
    last = trainer(checkpoints(broken)[-1])
    expect(last["tokens"] == steps * TOKENS_PER_STEP, "the token meter is not exact")
    summary = json.loads((broken / "summary.json").read_text())
    return {
        "cycles": cycles,
        "steps": steps,
        "steps_at_the_last_kill": at[-1],
        "killed_before_the_first_report": before_training,
        "cycles_that_moved_on": sum(b > a for a, b in zip([0, *at], at, strict=False)),
        "bit_identical": True,
        "losses_compared": len(losses(whole)),
        "tokens": last["tokens"],
        "tokens_wanted": steps * TOKENS_PER_STEP,
        "paid_seconds": summary["paid_seconds"],
        "down_seconds": summary["down_seconds"],
        "seconds": time.monotonic() - began,
    }


SCENARIOS = [
    Scenario(
        "R1",
        "SIGKILL while a checkpoint is written or pruned",
        "a process kills itself at a random file event (open, rename, remove, ...) under checkpoints/",
        "the same command goes on from the newest complete checkpoint; older ones are whole; rests are removed",
        killed_while_saving,
        times=50,
        quick=4,
    ),
    Scenario(
        "R2",
        "SIGKILL at a step",
        "a process kills itself before a random update",
        "bit-identical losses, weights, moments, state, generators, rates and tokens (fp32, CPU)",
        killed_at_a_step,
        times=10,
        quick=1,
    ),
    Scenario(
        "R25",
        "kill -9 and resume, again and again",
        "SIGKILL from outside at random moments",
        "tokens exact; meters monotone; no second lost or counted twice",
        spent_over_kills,
        times=20,
        quick=2,
    ),
    Scenario(
        "R33",
        "SIGKILL while a model grows",
        "a process kills itself at a random file event around growth",
        "the old model or the new one, never a mixture; the run ends as the uninterrupted one does",
        killed_while_growing,
        times=10,
        quick=1,
    ),
]
