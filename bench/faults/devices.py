"""What only a GPU can do to a run. Tried where there is one."""

import json

from hotplate.bench.faults.arena import PACKED, Arena, expect, step
from hotplate.bench.faults.scenario import Scenario

ON_GPU = [flag for flag in PACKED if not flag.startswith(("--device", "--precision"))] + ["--device=cuda"]


def real_out_of_memory(arena: Arena, times: int) -> str:
    """A batch that no device holds."""
    text = ""
    for _ in range(times):
        flags = ("--batch=65536", "--data.window=512", "--model.width=1024", "--model.ffn=4096")
        run = arena.place("run")
        text = arena.finish(run, 2, *flags, tiny=ON_GPU, code=2)
        for words in ("out of memory", "activations", "--micro-batch", str(run / "memory-00000.pickle")):
            expect(words in text, f"{words!r} is not said:\n{text[-1500:]}")
        expect((run / "memory-00000.pickle").stat().st_size, "the snapshot is empty")
    return text.strip().splitlines()[-1].strip()


def halving_on_a_device(arena: Arena, times: int) -> str:
    """The same batch with --guard.out-of-memory halve: updates go on with what fits."""
    run = arena.place("run")
    flags = ("--batch=65536", "--data.window=512", "--model.width=1024", "--model.ffn=4096")
    text = arena.finish(run, 2, *flags, "--guard.out-of-memory=halve", tiny=ON_GPU)
    expect("once more, and from now on, with micro-batches of" in text and step(run) == 2, text[-3000:])
    return f"two updates in micro-batches of {text.rsplit('--micro-batch ', 1)[1].split()[0]} rows"


def dead_device_rank(arena: Arena, times: int) -> str:
    """Rank 1 of 2 on NCCL is killed; torchrun restarts both."""
    run = arena.place("run")
    code, text = arena.ranks(2, arena.flags(run, 20, tiny=ON_GPU), ["kill_at_step:8:1"], restarts=2)
    expect(code == 0 and step(run) == 20, text[-3000:])
    return json.dumps({"step": step(run)})


SCENARIOS = [
    Scenario(
        "R29",
        "out of memory on a GPU",
        "a batch that no device holds",
        "estimate by category, a snapshot of the memory, a smaller micro-batch, exit code 2",
        real_out_of_memory,
        quick=1,
        needs="cuda",
    ),
    Scenario(
        "R29",
        "out of memory on a GPU, --guard.out-of-memory halve",
        "the same batch",
        "the same update from smaller micro-batches",
        halving_on_a_device,
        needs="cuda",
    ),
    Scenario(
        "R30",
        "a rank on NCCL dies",
        "SIGKILL of rank 1 of 2",
        "as on gloo: all are restarted, at most one interval is lost",
        dead_device_rank,
        needs="two cuda devices",
    ),
]
