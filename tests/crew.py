"""Ranks that stay: processes that torch is loaded in once, for many short runs of several ranks."""

import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO

from tiny import ROOT


class Crew:
    """Up to `size` processes; a run uses the first so many as its ranks."""

    def __init__(self, size: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")}
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

    def train(self, folder: Path, *flags: str, ranks: int) -> str:
        """A run in `folder` that ends with 0 on every rank; what they said."""
        self._port += 1
        order = {"folder": str(folder), "flags": flags, "world": ranks, "port": self._port}
        for member in self._members[:ranks]:
            assert member.stdin is not None
            member.stdin.write(json.dumps(order) + "\n")
            member.stdin.flush()
        said = []
        for rank, member in enumerate(self._members[:ranks]):
            assert member.stdout is not None
            answer = json.loads(member.stdout.readline())
            said.append(answer["said"])
            assert answer["code"] == 0, f"rank {rank}: {answer['said']}"
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
    import deepspeed  # noqa: F401

    import hotplate.train.commands.train  # noqa: F401

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
    try:
        code = guarded(train, order["flags"])
    except BaseException:
        said.write(traceback.format_exc())
        code = 1
    answers.write(json.dumps({"code": code, "said": said.getvalue()}) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
