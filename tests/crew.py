"""Ranks that start in milliseconds: forks of one process that torch is loaded in, for many short runs of several."""

import hashlib
import io
import json
import os
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch
from tiny import ROOT


class Crew:
    """A process that forks the ranks of each run."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        )
        self._port = 20_000 + os.getpid() % 10_000
        self.rows: list[list[str]] = []  # of the last run: per update, what each row held, in global order

    def train(self, folder: Path, *flags: str, ranks: int, poisoned: tuple[int, ...] = (), code: int = 0) -> str:
        """A run in `folder` that ends with `code` on every rank; what they said. The last rank's targets have weights
        that are no numbers in the updates `poisoned`, of which the first is 1."""
        self._port += 1
        order = {"folder": str(folder), "flags": flags, "world": ranks, "port": self._port, "poisoned": poisoned}
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        answers = json.loads(self._parent.stdout.readline())
        for rank, answer in enumerate(answers):
            assert answer["code"] == code, f"rank {rank}: {answer['said']}"
        rows = [answer["rows"] for answer in answers]
        self.rows = [[row for part in parts for row in part] for parts in zip(*rows, strict=True)]
        return "".join(answer["said"] for answer in answers)

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(30)


def main() -> None:
    """Answer what comes in, line by line, each by a fork a rank: nothing of one run's is left for the next."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - takes torch's compiler along

    from hotplate.bench.faults import nursery

    nursery.load()
    assert deepspeed.ops.__compatible_ops__  # found out with a C compiler, and kept
    for line in sys.stdin:
        order = json.loads(line)
        ranks = [_born(order, rank) for rank in range(order["world"])]
        answers.write(json.dumps([json.loads(rank.read()) for rank in ranks]) + "\n")
        answers.flush()
        for _ in ranks:
            os.wait()


def _born(order: dict, rank: int) -> IO[str]:
    """Where the answer of a rank's process comes out."""
    out, into = os.pipe()
    if os.fork() == 0:
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with os.fdopen(into, "w") as answer:
                _answer(order, answer)
        finally:
            os._exit(0)
    os.close(into)
    return os.fdopen(out)


def _answer(order: dict, answer: IO[str]) -> None:
    from hotplate.train import console
    from hotplate.train.commands import guarded
    from hotplate.train.commands.train import main as train

    os.chdir(order["folder"])
    os.environ |= {"WORLD_SIZE": str(order["world"]), "LOCAL_WORLD_SIZE": str(order["world"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
    console.plot_loss = lambda *_: None  # a third of a short run's time; others look at it
    sys.stdout = sys.stderr = said = io.StringIO()
    poisoned = order["poisoned"] if int(os.environ["RANK"]) == order["world"] - 1 else []
    rows = _watched(poisoned)
    try:
        code = guarded(train, order["flags"])
    except BaseException:
        said.write(traceback.format_exc())
        code = 1
    answer.write(json.dumps({"code": code, "said": said.getvalue(), "rows": rows}))


def _watched(poisoned: list[int]) -> list[list[str]]:
    """From now on: a hash of each row's tokens, targets, weights and positions, per update, of what is trained on."""
    from hotplate.train.step import Step

    kept, seen = Step.__call__, []

    def watched(self, batches, states, lr):
        parts = [torch.stack([b.tokens, b.targets, b.weights, b.positions], 1).double() for b in batches]
        seen.append([hashlib.sha256(row.numpy().tobytes()).hexdigest() for part in parts for row in part])
        if len(seen) in poisoned:
            batches = [replace(batch, weights=batch.weights * float("nan")) for batch in batches]
        return kept(self, batches, states, lr)

    Step.__call__ = watched
    return seen


if __name__ == "__main__":
    main()
