"""Disks that fill up, turn read-only, fail now and then, are slow, or bring back other bytes than were written."""

import os
import random
import subprocess
import time
from pathlib import Path

from hotplate.bench.faults.arena import Arena, checkpoints, ended, expect, expect_same, losses, small_disk, step
from hotplate.bench.faults.nursery import Child
from hotplate.bench.faults.scenario import Scenario
from hotplate.train.errors import StorageError
from hotplate.train.sinks import read_records

OFTEN = "--run.checkpoint-every=0.05"


def full_disk(arena: Arena, times: int) -> str:
    """A file system of 8 MB fills up during a run, is emptied, and fills up again for good."""
    told = ""
    for _ in range(times):
        with small_disk(arena.place("disk"), "8m") as disk:
            child = arena.start(disk / "run", 100_000, "--run.checkpoint-every=0.0002")
            child.wait_for("step 40/")
            held = step(disk / "run")
            expect(held > 0, "no checkpoint before the disk filled up")
            ballast = fill(disk / "ballast")
            child.wait_for("older checkpoints are intact")
            told = next(line for line in child.text.splitlines() if "older checkpoints are intact" in line)
            expect("bytes" in told and "free" in told, f"the warning names no sizes: {told}")
            ballast.unlink()
            wait_until(lambda h=held: step(disk / "run") > h, child)
            expect(not list((disk / "run" / "checkpoints").glob(".writing*")), "a half-written checkpoint stayed")
            ballast = fill(disk / "ballast")
            expect(child.wait() == StorageError.exit_code, f"exit code {child.code}:\n{child.text[-2000:]}")
            expect("3 in a row" in child.text.replace("\n", " "), f"no reason given:\n{child.text[-1500:]}")
            before = step(disk / "run")
            ballast.unlink()
            child = arena.start(disk / "run", 100_000, "--run.checkpoint-every=0.0002")
            child.wait_for(f"at step {before}")
            child.send(9)
            child.wait()
    sizes = told.split("(")[-1].split(")")[0]
    return f"{times} disks: warned ({sizes}), went on, saved again when there was room; third failure in a row: exit 74"


def fill(path: Path) -> Path:
    """A file that takes all the room there is."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 9, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return path


def wait_until(holds, child: Child, seconds: float = 60) -> None:
    """RuntimeError when the child ends or time runs out before."""
    until = time.monotonic() + seconds
    while not holds():
        if child.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"it never came to that:\n{child.text[-3000:]}")
        time.sleep(0.01)


def too_small_disk(arena: Arena, times: int) -> str:
    """A disk that three checkpoints do not fit is refused at the start."""
    message = ""
    for _ in range(times):
        with small_disk(arena.place("disk"), "256k") as disk:
            message = arena.finish(disk / "run", 10, code=2)
            expect("checkpoints need" in message and "are free" in message, message)
            expect(not checkpoints(disk / "run"), "something was written")
    return message.split(": ", 2)[-1].strip().split(";")[0]


def read_only_disk(arena: Arena, times: int) -> str:
    """The file system is remounted read-only during a run."""
    for _ in range(times):
        with small_disk(arena.place("disk"), "16m") as disk:
            child = arena.start(disk / "run", 100_000, "--run.checkpoint-every=0.0005")
            wait_until(lambda d=disk: step(d / "run") > 0, child)
            # A forced remount: open files (the log, the lock) do not keep a failing disk writable either.
            done = subprocess.run(["mount", "-o", "remount,ro,size=4k", str(disk)], capture_output=True)
            if done.returncode:
                fill(disk / "ballast")  # open files keep tmpfs writable: a full one stands in
            expect(child.wait() == StorageError.exit_code, f"exit code {child.code}:\n{child.text[-2000:]}")
    return f"{times} runs: each failed save was a warning, the third in a row ended the run with exit 74"


def failing_disk(arena: Arena, times: int) -> str:
    """EIO from single file events; with longer bursts, from whole saves."""
    drawn, steps = random.Random(7), 20
    whole = arena.place("whole")
    arena.finish(whole, steps, OFTEN)
    again = given_up = 0
    for trial in range(times):
        broken = arena.place("broken")
        first = drawn.randint(10, 60)
        last = first if trial % 2 == 0 else first + 14
        faults = [f"fail_files:{broken}/checkpoints/:EIO:{first}:{last}"]
        child = arena.start(broken, steps, OFTEN, "--guard.save-failures=99", faults=faults)
        ended(child)
        again += child.text.count("trying again")
        given_up += child.text.count("older checkpoints are intact")
        expect_same(whole, broken)
    expect(times < 2 or (again and given_up), f"the faults hit nothing: {again} tries again, {given_up} given up")
    return f"{times} runs with EIO: {again} tries again, {given_up} saves given up, all ended bit-identical"


def slow_disk(arena: Arena, times: int) -> str:
    """Every file event of a checkpoint takes 50 ms."""
    whole = arena.place("whole")
    arena.finish(whole, 12, "--run.checkpoint-every=0.25")
    for _ in range(times):
        slow = arena.place("slow")
        arena.finish(slow, 12, "--run.checkpoint-every=0.25", faults=[f"slow_files:{slow}/checkpoints:0.05"])
        expect_same(whole, slow)
    return f"{times} runs: no difference but the time"


def damaged_checkpoint(arena: Arena, times: int) -> str:
    """Every file of the newest checkpoint, flipped, cut and deleted in turn."""
    drawn = random.Random(11)
    whole = arena.place("whole")
    arena.finish(whole, 12, "--run.checkpoint-every=0.25", "--run.keep=3")
    newest = checkpoints(whole)[-1]
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    damages = [(file, how) for file in files for how in ("flip", "cut", "delete")]
    for file, how in damages if times >= len(damages) else drawn.sample(damages, times):
        path = newest / file
        content = path.read_bytes()
        if how == "flip":
            at = drawn.randrange(len(content))
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << drawn.randrange(8)]) + content[at + 1 :])
        elif how == "cut":
            path.write_bytes(content[: drawn.randrange(len(content))])
        else:
            path.unlink()
        explicit = ended(arena.nursery.start(["evaluate", str(newest)]), 2)
        expect(file.name in explicit, f"{how} of {file}: the explicit path says {explicit}")
        child = arena.start(whole, 12, "--run.checkpoint-every=0.25", "--run.keep=3")
        text = ended(child)
        expect("warning" in text and file.name in text, f"{how} of {file}: no warning names it:\n{text[-1500:]}")
        expect(f"at step {step_before(newest)}" in text, f"{how} of {file}: not the one before:\n{text[-1500:]}")
        again = checkpoints(whole)[-1]
        expect(again == newest, "the step was not done again")
        (whole / "metrics.jsonl").touch()
    tried = min(times, len(damages))
    return f"{tried} damages over {len(files)} files: named, explicit path refused, auto took the one before"


def step_before(path: Path) -> int:
    """Of the committed checkpoint before this one."""
    return int(checkpoints(path.parent.parent)[-2].name.removeprefix("step-"))


def failing_metrics(arena: Arena, times: int) -> str:
    """metrics.jsonl alone on a full file system; and one with a cut last line."""
    whole = arena.place("whole")
    arena.finish(whole, 10)
    for _ in range(times):
        broken = arena.place("broken")
        broken.mkdir()
        with small_disk(arena.place("disk"), "64k") as disk:
            (disk / "metrics.jsonl").touch()
            (broken / "metrics.jsonl").symlink_to(disk / "metrics.jsonl")
            fill(disk / "ballast")
            text = arena.finish(broken, 10)
        expect("stopped taking metrics" in text and "training goes on" in text, f"no warning:\n{text[-1500:]}")
        expect(step(broken) == 10, "training stopped")
        cut = arena.place("cut")
        arena.finish(cut, 10, "--run.checkpoint-every=0.5")
        path = cut / "metrics.jsonl"
        whole_text = path.read_text()
        path.write_text(whole_text[:-20])
        expect(len(read_records(path)) == len(whole_text.splitlines()) - 1, "the cut line was not left out")
        arena.finish(cut, 10, "--run.checkpoint-every=0.5")
        expect(losses(cut) == losses(whole)[: len(losses(cut))], "records differ after the cut line")
    return f"{times} runs: one warning, training unaffected; a cut last line is left out when read"


def no_mount() -> str | None:
    """Why no small disk can be mounted here; None where one can."""
    if os.geteuid() != 0:
        return "mounting a tmpfs needs root"
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    return None if done.returncode == 0 else "mounting is not allowed here"


SCENARIOS = [
    Scenario(
        "R5",
        "damaged checkpoint",
        "a bit flipped, the end cut off, or a file deleted, in each file of the newest checkpoint",
        "the file is named; an explicit path is refused; --run.resume auto takes the one before, with a warning",
        damaged_checkpoint,
        times=1000,
        quick=1,
    ),
    Scenario(
        "R6",
        "full disk during a run",
        "a tmpfs of 8 MB, filled to the last byte while a run trains on it",
        "warning with needed and free bytes, no rests, training goes on; three in a row end it with exit code 74",
        full_disk,
        times=3,
        quick=1,
    ),
    Scenario(
        "R6",
        "disk too small at the start",
        "a tmpfs of 256 KiB",
        "refused before the model is built, with needed and free bytes",
        too_small_disk,
        times=1,
    ),
    Scenario(
        "R7",
        "disk turns read-only",
        "a tmpfs remounted read-only during a run",
        "as a full disk",
        read_only_disk,
        times=2,
    ),
    Scenario(
        "R7",
        "disk fails now and then",
        "EIO from single file events of a save, or from 15 in a row",
        "tried again with growing pauses, then as a full disk; training unaffected",
        failing_disk,
        times=10,
        quick=2,
    ),
    Scenario("R7", "slow disk", "50 ms for every file event", "training unaffected", slow_disk, times=2),
    Scenario(
        "R27",
        "the log cannot be written",
        "metrics.jsonl alone on a full tmpfs; a last line cut off",
        "one warning, training unaffected; a cut line is ignored on reading",
        failing_metrics,
        times=2,
        quick=1,
    ),
]
