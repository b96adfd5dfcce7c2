"""Ranks that stay: processes that torch is loaded in once, for many short runs of several ranks."""

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
    """Up to `size` processes; a run uses the first so many as its ranks."""

    def __init__(self, size: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
        # Checkouts that share the folder of DeepSpeed's extension make each other compile it again and again.
        environment.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / "build" / "torch_extensions"))
        self._members = [
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(size)
        ]
        self._port = 20_000 + os.getpid() % 10_000
        self.rows: list[list[str]] = []  # of the last run: per update, what each row held, in global order

    def train(self, folder: Path, *flags: str, ranks: int, poisoned: tuple[int, ...] = (), code: int = 0) -> str:
        """A run in `folder` that ends with `code` on every rank; what they said. The last rank's targets have weights
        that are no numbers in the updates `poisoned`, of which the first is 1."""
        self._port += 1
        order = {"folder": str(folder), "flags": flags, "world": ranks, "port": self._port, "poisoned": poisoned}
        for member in self._members[:ranks]:
            assert member.stdin is not None
            member.stdin.write(json.dumps(order) + "\n")
            member.stdin.flush()
        said, rows = [], []
        for rank, member in enumerate(self._members[:ranks]):
            assert member.stdout is not None
            answer = json.loads(member.stdout.readline())
            said.append(answer["said"])
            rows.append(answer["rows"])
            assert answer["code"] == code, f"rank {rank}: {answer['said']}"
        self.rows = [[row for part in parts for row in part] for parts in zip(*rows, strict=True)]
        return "".join(said)

    def close(self) -> None:
        for member in self._members:
            assert member.stdin is not None
            member.stdin.close()
            member.wait(30)


def main() -> None:
    """Answer what comes in, line by line, each by a fork: nothing of one run's is left for the next."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - takes torch's compiler along

    from hotplate.bench.faults import nursery

    nursery.load()
    assert deepspeed.ops.__compatible_ops__  # found out with a C compiler, and kept
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            try:
                _answer(json.loads(line), answers)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def _answer(order: dict, answers: IO[str]) -> None:
    from hotplate.train.commands import guarded
    from hotplate.train.commands.train import main as train

    os.chdir(order["folder"])
    os.environ |= {"WORLD_SIZE": str(order["world"]), "LOCAL_WORLD_SIZE": str(order["world"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
    sys.stdout = sys.stderr = said = io.StringIO()
    poisoned = order["poisoned"] if int(os.environ["RANK"]) == order["world"] - 1 else []
    rows = _watched(poisoned)
    try:
        code = guarded(train, order["flags"])
    except BaseException:
        said.write(traceback.format_exc())
        code = 1
    answers.write(json.dumps({"code": code, "said": said.getvalue(), "rows": rows}) + "\n")
    answers.flush()


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
