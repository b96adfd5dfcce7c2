"""Saving beside training: retention while a save is under way, and weights that move on meanwhile."""

import random
import signal
import time

from hotplate.bench.faults.arena import Arena, checkpoints, expect, tensor_digest
from hotplate.bench.faults.scenario import Scenario
from hotplate.train import checkpoint

SLOW = "0.02"  # seconds a file event takes, so that a save lasts for many updates


def retention(arena: Arena, times: int) -> str:
    """A run that keeps 1 and then 2 checkpoints on a slow disk, frozen at random moments to be looked at."""
    drawn, looks, fewest = random.Random(5), 0, 9
    for keep in (1, 2)[:times]:
        run = arena.place("run")
        faults = [f"slow_files:{run}/checkpoints:{SLOW}"]
        child = arena.start(run, 100, "--run.checkpoint-every=0.05", f"--run.keep={keep}", faults=faults)
        seen = 0
        while child.poll() is None:
            time.sleep(drawn.uniform(0.01, 0.15))
            child.send(signal.SIGSTOP)
            whole = [path for path in checkpoints(run) if checkpoint.problem(path) is None]
            newest = max((checkpoint.step_of(path) for path in whole), default=0)
            child.send(signal.SIGCONT)
            expect(newest >= seen, f"the newest complete one was {seen}, and is {newest}")
            expect(not seen or whole, "no complete checkpoint is left")
            expect(len(whole) <= keep + 1, f"{len(whole)} are kept instead of {keep}")
            seen, looks = newest, looks + 1
            fewest = min(fewest, len(whole)) if seen else fewest
        expect(child.wait() == 0, child.text[-2000:])
        expect(len(checkpoints(run)) == keep, f"{len(checkpoints(run))} at the end instead of {keep}")
    return f"{looks} looks at frozen runs: never fewer than {fewest} complete ones, the newest never lost"


def moving_weights(arena: Arena, times: int) -> str:
    """Every checkpoint of a run on a slow disk against the same step's of a run on a fast one."""
    steps, flags = 60, ("--run.checkpoint-every=0.2", "--run.keep=99")
    fast = arena.place("fast")
    arena.finish(fast, steps, *flags)
    compared = 0
    for _ in range(times):
        slow = arena.place("slow")
        arena.finish(slow, steps, *flags, faults=[f"slow_files:{slow}/checkpoints:{SLOW}"])
        expect([p.name for p in checkpoints(slow)] == [p.name for p in checkpoints(fast)], "steps are missing")
        for one, other in zip(checkpoints(fast), checkpoints(slow), strict=True):
            expect(tensor_digest(one) == tensor_digest(other), f"{other.name} holds other tensors")
            compared += 1
    return f"{compared} checkpoints written beside training: the bytes of their own step"


SCENARIOS = [
    Scenario(
        "R22",
        "retention while a save is under way",
        "20 ms for every file event; runs that keep 1 and 2, frozen at random moments",
        "the newest complete checkpoint is never removed; never fewer than one",
        retention,
        times=2,
        quick=1,
    ),
    Scenario(
        "R23",
        "weights change while they are written",
        "20 ms for every file event while updates go on",
        "the saved bytes are those of the step",
        moving_weights,
        times=2,
        quick=1,
    ),
]
