"""Runs of several ranks under a real torchrun (gloo): a rank dies, hangs or is frozen; other numbers of ranks."""

import os
import signal
import time

from hotplate.bench.faults.arena import PACKED, Arena, checkpoints, expect, losses, records, step, trainer
from hotplate.bench.faults.scenario import Scenario
from hotplate.train import checkpoint
from hotplate.train.flight import NAME, PREFIX
from hotplate.train.watchdog import FOLDER, HUNG

OFTEN = "--run.checkpoint-every=0.1"
ASLEEP, WAITING = "injections.py", "in _engine_run_backward"  # where the stacks must show the ranks
EXACT = "--optimizer.eps=1e-4"  # without it Adam's first updates are signs, and turn rounding into whole updates


def dead_rank(arena: Arena, times: int) -> str:
    """Rank 1 of 2 is killed at step 8; torchrun restarts all."""
    for _ in range(times):
        run = arena.place("run")
        code, text = arena.ranks(2, arena.flags(run, 20, OFTEN), ["kill_at_step:8:1"], restarts=2)
        expect(code == 0, text[-4000:])
        # Checkpoints are at 2, 4 and 6, the last of which may still be under way when the rank dies.
        expect("at step 6" in text or "at step 4" in text, f"did not go on from the last checkpoint:\n{text[-3000:]}")
        expect([at for at, _ in losses(run)] == list(range(1, 21)), "steps are missing or done twice in the log")
        expect(trainer(checkpoints(run)[-1])["tokens"] == 20 * 64, "tokens")
    return f"{times} times: restarted by torchrun from the last complete checkpoint, all 20 steps in the log once"


def hanging_rank(arena: Arena, times: int) -> str:
    """Rank 1 of 2 sleeps for ever."""
    longest = 0.0
    for _ in range(times):
        run, began = arena.place("run"), time.monotonic()
        code, text = arena.ranks(2, arena.flags(run, 20, "--guard.hang-seconds=3"), ["sleep_at_step:5:1"])
        longest = max(longest, time.monotonic() - began)
        expect(code != 0, "exit code 0")
        for words in ("no progress for", "rank 0: process", "rank 1: process", "step 5, phase train"):
            expect(words in text, f"{words!r} is not said:\n{text[-4000:]}")
        expect(ASLEEP in text and WAITING in text, f"not the stacks of both ranks:\n{text[-6000:]}")
        expect(f"exitcode  : {HUNG}" in text, f"no rank ended with {HUNG}:\n{text[-3000:]}")
    return (
        f"{times} times: step, phase and Python stacks of both ranks, exit code {HUNG}; {longest:.0f} s with start-up"
    )


def frozen_rank(arena: Arena, times: int) -> str:
    """Rank 1 of 2 is stopped: not even its threads run."""
    for _ in range(times):
        run = arena.place("run")
        code, text = arena.ranks(2, arena.flags(run, 20, "--guard.hang-seconds=3"), ["freeze_at_step:5:1"])
        expect(code != 0, "exit code 0")
        for words in ("no progress for", "rank 1: process", WAITING):
            expect(words in text, f"{words!r} is not said:\n{text[-4000:]}")
    return f"{times} times: the other rank told both ranks' last signs of life and its own stacks, and left"


def hanging_alone(arena: Arena, times: int) -> str:
    """A run of one process that sleeps for ever."""
    for _ in range(times):
        child = arena.start(arena.place("run"), 20, "--guard.hang-seconds=1", faults=["sleep_at_step:5"])
        expect(child.wait(60) == HUNG, f"exit code {child.code}")
        for words in ("rank 0 of 1 made no progress", "step 5, phase train", ASLEEP):
            expect(words in child.text, f"{words!r} is not said:\n{child.text[-3000:]}")
    return f"{times} times: step, phase and stacks, exit code {HUNG}"


def dump_of_a_hang(arena: Arena, times: int) -> str:
    """A run of one process that sleeps for ever, beside a file such as NCCL's flight recorder leaves."""
    run = arena.place("run")
    dump = run / FOLDER / f"{NAME}0"
    dump.parent.mkdir(parents=True)
    dump.write_bytes(b"not ours to read")
    os.utime(dump, (2**32, 2**32))  # written after the run began
    prefix = {PREFIX[0]: str(dump)[:-1]}
    command = arena.flags(run, 20, "--guard.hang-seconds=1")
    child = arena.nursery.start(command, ["sleep_at_step:5"], **prefix)
    expect(child.wait(60) == HUNG, f"exit code {child.code}")
    expect(str(dump) in child.text.partition("no progress")[2], f"not said:\n{child.text[-3000:]}")
    return "its path is the report's last line"


def other_worlds(arena: Arena, times: int) -> str:
    """One run over 1, 2, 4 and again 1 ranks, stopped by SIGTERM's marker in between, beside one of a single rank."""
    whole = arena.place("whole")
    arena.finish(whole, 16, EXACT)
    run, worst = arena.place("run"), 0.0
    for world, until in ((1, 4), (2, 8), (4, 12), (1, 16)):
        flags = arena.flags(run, 16, EXACT, "--run.checkpoint-every=0.0625", "--run.keep=99")
        faults = [] if until == 16 else [f"kill_at_step:{until - step(run) + 1}"]
        code, text = arena.ranks(world, flags, faults)
        expect((code == 0) == (until == 16), f"exit code {code}:\n{text[-3000:]}")
        # The last checkpoint may still have been under way.
        expect(until - 2 <= step(run) <= until, f"step {step(run)}, not {until}, on {world} ranks:\n{text[-2000:]}")
    for (_, a), (_, b) in zip(losses(whole), losses(run), strict=True):
        worst = max(worst, abs(a - b))
    expect(worst <= 1e-6 * 8, f"losses differ by {worst}")
    return f"1, 2, 4 and 1 ranks: the same rows in every update, largest difference of a loss {worst:.1e} nats of 7.6"


def undividable_batch(arena: Arena, times: int) -> str:
    """A batch of 4 over 3 ranks."""
    code, text = arena.ranks(3, arena.flags(arena.place("run"), 10))
    expect(code != 0 and "--batch 4 does not divide over 3 ranks; use [1, 2, 4] ranks" in text, text[-3000:])
    expect("parameters" not in text, "the model was built first")
    return "refused before the model is built; legal numbers listed"


def accumulation(arena: Arena, times: int) -> str:
    """Four micro-batches on one rank, and one on each of four."""
    one, four = arena.place("one"), arena.place("four")
    flags = (EXACT, "--run.checkpoint-every=0.5")
    arena.finish(one, 2, *flags, "--micro-batch=1", tiny=PACKED)
    code, text = arena.ranks(4, arena.flags(four, 2, *flags, tiny=PACKED))
    expect(code == 0, text[-3000:])
    first, second = (checkpoint.load(checkpoints(run)[0]).optimizer for run in (one, four))
    worst = 0.0
    for name, moment in first.items():
        if name.startswith("exp_avg."):
            worst = max(worst, ((moment - second[name]).norm() / moment.norm().clamp(min=1e-12)).item())
    expect(worst < 1e-5, f"gradients differ by {worst} of their norm")
    norms = [[record["gradient_norm"] for record in records(run)] for run in (one, four)]
    return f"largest difference {worst:.1e} of a tensor's norm; gradient norms {norms[0][0]:.6f} and {norms[1][0]:.6f}"


def signal_to_one_rank(arena: Arena, times: int) -> str:
    """SIGTERM reaches one of two ranks."""
    run = arena.place("run")
    flags = arena.flags(run, 20, OFTEN, "--evaluation.every=0.1")
    code, text = arena.ranks(2, flags, [f"signal_in_phase:evaluate:{signal.SIGTERM.name}"])
    expect(code == 0 and "stopped by SIGTERM" in text, text[-3000:])
    expect(0 < step(run) < 20, f"step {step(run)}")
    return f"both ranks stopped after step {step(run)}, saved, exit 0"


SCENARIOS = [
    Scenario(
        "R3",
        "resume on other numbers of ranks",
        "1, 2, 4, 1 ranks, killed in between (torchrun, gloo)",
        "the same sample order; losses within 1e-6 of their size",
        other_worlds,
    ),
    Scenario(
        "R4",
        "a batch that does not divide over the ranks",
        "batch 4 on 3 ranks",
        "refused before the model is built",
        undividable_batch,
    ),
    Scenario(
        "R8", "a signal to one rank of two", "SIGTERM to rank 0", "all ranks agree on the step", signal_to_one_rank
    ),
    Scenario(
        "R9",
        "a rank dies",
        "SIGKILL of rank 1 of 2 under torchrun --max-restarts",
        "the others exit, all are restarted from the last complete checkpoint (one more may have been under way)",
        dead_rank,
        times=3,
        quick=1,
    ),
    Scenario(
        "R10",
        "a rank hangs",
        "rank 1 of 2 sleeps for ever",
        "step, phase and Python stacks of all ranks; non-zero exit after --guard.hang-seconds",
        hanging_rank,
        times=2,
        quick=1,
    ),
    Scenario("R10", "a rank is frozen", "SIGSTOP to rank 1 of 2", "the others tell and leave", frozen_rank, times=1),
    Scenario("R10", "a single process hangs", "it sleeps for ever", "as above", hanging_alone, times=3, quick=1),
    Scenario(
        "R30",
        "a hang with a dump of NCCL's flight recorder (on a CPU)",
        "a file where the recorder writes; a process that sleeps for ever",
        "the report names the file",
        dump_of_a_hang,
        quick=1,
    ),
    Scenario(
        "R34",
        "accumulation against data parallelism",
        "4 micro-batches on 1 rank, 1 on each of 4",
        "the same gradients to rounding",
        accumulation,
    ),
]
