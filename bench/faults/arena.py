"""Where runs come to harm: a tiny data set, a nursery, folders, small disks, and the comparison of two runs."""

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hotplate.bench.faults import child
from hotplate.bench.faults.nursery import LIMIT_SECONDS, Child, Nursery
from hotplate.train.data.prepare import PrepareConfig, prepare

# A recurrent model in stream mode: its carried state is one more thing that a checkpoint must bring back.
TINY = [
    "lstm-nano",
    *("--model.layers=1", "--model.width=32", "--model.ffn=48", "--model.vocab=2048"),
    *("--model.mixer.heads=2", "--model.mixer.head-width=16", "--data.mode=stream", "--data.window=16", "--batch=4"),
    *("--device=cpu", "--precision=fp32", "--threads=1", "--evaluation.tokens=256", "--evaluation.sample-tokens=0"),
    *("--evaluation.every=0", "--evaluation.splits", "validation", "--run.log-steps=1", "--run.resume=auto"),
]
PACKED = [*TINY, "--data.mode=packed"]
TOKENS_PER_STEP = 64


class Broken(AssertionError):
    """A promise that was not kept."""


def expect(holds: object, message: str) -> None:
    """Broken unless the promise holds."""
    if not holds:
        raise Broken(message)


def invented_text(words: int, seed: int) -> str:
    """Sentences over a skewed vocabulary in which each word narrows the next."""
    random, letters = np.random.default_rng(seed), np.random.default_rng(0)
    vocabulary = ["".join(row[: 2 + i % 5]) for i, row in enumerate(letters.choice(list("etaoinshrdlu"), (1500, 6)))]
    chosen, word = [], 0
    for number in range(words):
        word = (word * 7 + int(random.zipf(1.6))) % len(vocabulary)
        chosen.append(vocabulary[word] + (".\n" if number % 13 == 12 else ""))
    return " ".join(chosen)


class Arena:
    """A folder with a prepared data set, and a nursery to start processes from."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.folder, self.nursery = folder, nursery
        self.data = folder / "set"
        if not self.data.exists():
            texts = folder / "texts"
            texts.mkdir(parents=True, exist_ok=True)
            for number in range(60):
                (texts / f"{number:03d}.txt").write_text(invented_text(60 + 25 * (number % 9), number))
            prepare(
                PrepareConfig(source=str(texts), out=str(self.data), vocab=2048, validation=0.1, test=0.1, workers=1)
            )
        self._count = 0

    def place(self, name: str) -> Path:
        """A new folder's path."""
        self._count += 1
        return self.folder / f"{self._count:03d}-{name}"

    def flags(self, run: Path, steps: int, *more: str, tiny: Sequence[str] = tuple(TINY)) -> list[str]:
        """`train` and its flags."""
        return ["train", *tiny, f"--data.source={self.data}", f"--run.folder={run}", f"--budget={steps}steps", *more]

    def start(self, run: Path, steps: int, *more: str, faults: Sequence[str] = (), tiny: Sequence[str] = tuple(TINY)):
        """A training process."""
        return self.nursery.start(self.flags(run, steps, *more, tiny=tiny), faults)

    def finish(self, run: Path, steps: int, *more: str, tiny: Sequence[str] = tuple(TINY), faults=(), code: int = 0):
        """A training process that must end with `code`; what it printed."""
        return ended(self.start(run, steps, *more, faults=faults, tiny=tiny), code)

    def ranks(
        self,
        world: int,
        flags: Sequence[str],
        faults: Sequence[str] = (),
        restarts: int = 0,
        seconds: float = 240,
        **environment: str,
    ) -> tuple[int, str]:
        """(exit code, output) of a real torchrun over gloo."""
        launcher = ["--standalone", f"--nproc-per-node={world}", f"--max-restarts={restarts}", "--monitor-interval=0.2"]
        program = Path(child.__file__)
        started = self.nursery.torchrun(launcher, program, *faults, "then", *flags, **environment)
        return started.wait(seconds), started.text


def ended(child: Child, code: int = 0, seconds: float = LIMIT_SECONDS) -> str:
    """The output of a process that must end with `code` in so many seconds."""
    found = child.wait(seconds)
    expect(found == code, f"want exit code {code}, got {found}:\n{child.text[-3000:]}")
    return child.text


def checkpoints(run: Path) -> list[Path]:
    """Committed ones, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def step(run: Path) -> int:
    """Of the newest committed checkpoint; 0 where there is none."""
    found = checkpoints(run)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def records(run: Path) -> list[dict[str, Any]]:
    from hotplate.train.sinks import read_records

    return [record for record in read_records(run / "metrics.jsonl") if "loss" in record]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in records(run)]


def tensor_digest(path: Path) -> str:
    """SHA-256 over every tensor file of a checkpoint, by name: weights, moments, carried state, generators."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.safetensors")):
        digest.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return digest.hexdigest()


def expect_same(whole: Path, broken: Path) -> None:
    """Bit for bit: every tensor of the last checkpoint, and the loss of every step."""
    expect(step(whole) == step(broken), f"the last steps differ: {step(whole)} and {step(broken)}")
    same = tensor_digest(checkpoints(whole)[-1]) == tensor_digest(checkpoints(broken)[-1])
    expect(same, "the last checkpoints' tensors differ")
    expect(losses(whole) == losses(broken), "the losses differ")


def trainer(path: Path) -> dict[str, Any]:
    """A checkpoint's trainer.json."""
    return json.loads((path / "trainer.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A real file system of its own (tmpfs), which can be full. PermissionError where mounting is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        raise PermissionError(f"mount: {done.stderr.decode(errors='replace').strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
