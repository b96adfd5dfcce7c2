"""Losses and gradients that are not finite or jump."""

import math

from safetensors import safe_open
from safetensors.torch import load_file

from hotplate.bench.faults.arena import PACKED, Arena, checkpoints, ended, expect, records, step
from hotplate.bench.faults.scenario import Scenario
from hotplate.train import checkpoint

EVERY = ("--run.checkpoint-every=0.05", "--run.keep=99")
STEPS = 20
SPIKES = ("--guard.spike-window=8", "--guard.spike-sigmas=6")


def not_finite(arena: Arena, times: int) -> str:
    """One update with a poisoned loss or gradient."""
    whole = arena.place("whole")
    arena.finish(whole, STEPS, tiny=PACKED)
    cases = ["scale_loss:7:nan", "scale_loss:7:inf", "poison_gradient:7", "scale_loss:7:-inf"][:times]
    for fault in cases:
        run = arena.place("run")
        text = arena.finish(run, STEPS, *EVERY, tiny=PACKED, faults=[fault])
        expect("update 7 was skipped: not finite" in text, f"{fault}: not said:\n{text[-2000:]}")
        before, after = (checkpoint.load(path) for path in checkpoints(run)[5:7])
        for name, value in before.model.items():
            expect(value.equal(after.model[name]), f"{fault}: {name} changed in the skipped update")
        for name, value in before.optimizer.items():
            expect(value.equal(after.optimizer[name]), f"{fault}: {name} changed in the skipped update")
        expect([r["skipped"] for r in records(run)] == [0] * 6 + [1] * 14, f"{fault}: not counted")
        kept = run / "skipped" / "step-00000006.safetensors"
        with safe_open(kept, "pt") as file:
            expect(file.metadata()["step"] == "6", "the batch's step is not in its file")
        expect(load_file(kept)["tokens"].shape == (4, 16), "the batch was not kept")
        expect(all(x.isfinite().all() for x in checkpoint.load(checkpoints(run)[-1]).model.values()), "not finite")
    return f"{len(cases)} faults: skipped bit for bit, counted, step and rows said, batch kept"


def for_ever_not_finite(arena: Arena, times: int) -> str:
    """Every update from the fourth on."""
    for _ in range(times):
        run = arena.place("run")
        faults = ["scale_loss:4-1000:nan"]
        text = arena.finish(run, 500, "--optimizer.max-skipped=5", tiny=PACKED, faults=faults, code=2)
        expect("the last 5 updates" in text and "--optimizer.lr" in text, text[-1500:])
        found, _ = checkpoint.newest(run / "checkpoints")
        expect(found is not None and all(x.isfinite().all() for x in found.model.values()), "no finite weights saved")
    return f"{times} runs: stopped at the fifth in a row, exit 2, last finite weights saved"


def on_one_rank(arena: Arena, times: int) -> str:
    """A poisoned loss on the second of two ranks."""
    for fault in ["scale_loss:7:nan:1", "poison_gradient:7:1"][:times]:
        run = arena.place("run")
        code, text = arena.ranks(2, arena.flags(run, 10, "--run.checkpoint-every=0.1", "--run.keep=99"), [fault])
        expect(code == 0, text[-3000:])
        before, after = (checkpoint.load(path) for path in checkpoints(run)[5:7])
        same = all(value.equal(after.model[name]) for name, value in before.model.items())
        expect(same and records(run)[-1]["skipped"] == 1, f"{fault}: the ranks did not skip together")
    return "both ranks skipped the same update, weights unchanged bit for bit"


def jumping_loss(arena: Arena, times: int) -> str:
    """A loss a thousand times as large, under both policies; the second time just after a resume."""
    for policy in ("skip", "warn")[:times]:
        run = arena.place(policy)
        flags = (*EVERY, *SPIKES, f"--guard.spike={policy}")
        child = arena.start(run, STEPS, *flags, tiny=PACKED, faults=["kill_at_step:16"])
        expect(child.wait() == -9, "not killed")
        expect(step(run) >= 12, f"step {step(run)}: nothing to go on from")
        at = step(run) + 3
        # Three updates after the resume: a window of eight that began anew would not judge yet.
        text = ended(arena.start(run, STEPS, *flags, tiny=PACKED, faults=["scale_loss:3:1000"]))
        did = "skipped" if policy == "skip" else "applied"
        expect(f"update {at} was {did}: loss spike" in text, f"{policy}: not said:\n{text[-2500:]}")
        before, after = (checkpoint.load(path).model for path in checkpoints(run)[at - 2 : at])
        same = all(value.equal(after[name]) for name, value in before.items())
        expect(same == (policy == "skip"), f"{policy}: weights {'un' if same else ''}changed")
        expect((run / "skipped" / f"step-{at - 1:08d}.safetensors").exists(), "the batch was not kept")
        expect(math.isfinite(records(run)[-1]["loss"]), "the run did not recover")
    return (
        f"{min(times, 2)} policies: judged with the statistics from before the kill; skip left the weights bit for bit"
    )


def out_of_memory(arena: Arena, times: int) -> str:
    """torch's out-of-memory error in the first and in a later update."""
    for at in (1, 12)[:times]:
        run = arena.place("run")
        text = arena.finish(run, STEPS, tiny=PACKED, faults=[f"memory_at_step:{at}"], code=2)
        for words in ("out of memory", "activations", "optimizer", "--micro-batch 2 (now 4", "updates stay the same"):
            expect(words in text, f"{words!r} is not said:\n{text[-1500:]}")
        expect("Traceback" not in text, "a traceback")
    return f"{min(times, 2)} runs: estimate by category, the next smaller micro-batch, exit 2"


SCENARIOS = [
    Scenario(
        "R11",
        "loss or one gradient is NaN or infinite",
        "an update's loss times nan, inf or -inf; a NaN from a gradient hook",
        "the update is skipped bit for bit, counted, its step and rows are said, its batch is kept",
        not_finite,
        times=4,
        quick=1,
    ),
    Scenario(
        "R11",
        "every update is not finite",
        "the loss times nan from the fourth update on",
        "stops after --optimizer.max-skipped in a row; weights from before are saved",
        for_ever_not_finite,
        times=1,
        quick=1,
    ),
    Scenario(
        "R11",
        "NaN on one rank only",
        "the same on rank 1 of 2 (torchrun, gloo)",
        "all ranks skip the same update",
        on_one_rank,
        times=2,
    ),
    Scenario(
        "R12",
        "loss spike",
        "an update's loss times 1,000, three updates after a kill and resume",
        "skipped or said, as --guard.spike says; the statistics survive the resume",
        jumping_loss,
        times=2,
        quick=1,
    ),
    Scenario(
        "R29",
        "out of memory (the error, on a CPU)",
        "torch.OutOfMemoryError raised in the first and a later update",
        "estimate by category, a smaller micro-batch, exit code 2",
        out_of_memory,
        times=2,
        quick=1,
    ),
]
