"""Processes that start in milliseconds: a server has imported everything and forks one per request.

Importing torch takes seconds, a killed run is started again a thousand times. The server itself runs no tensor
operation, so that a fork inherits no thread. A child is a process like any other: its own id, signals, files, death.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.002
LIMIT_SECONDS = 240.0
FORMS = ("autograd", "eager", "native")  # what a room imports at its first call on a CPU
LOADED = (
    *("hotplate.bench.faults.child", "hotplate.train.commands.data", "hotplate.train.commands.train"),
    *("torch._dynamo", "torch.distributed.run", "matplotlib.pyplot", "matplotlib.backends.backend_agg"),
)
FORKING = ("--start-method=fork", "--run-path")  # torchrun's ranks share what its process has loaded


class Child:
    """A running command and what it prints."""

    def __init__(self, nursery: "Nursery", process: int, output: Path) -> None:
        self.process, self._nursery, self._output = process, nursery, output
        self.code: int | None = None
        self.began = time.monotonic()

    @property
    def text(self) -> str:
        """Standard output and errors so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self._nursery.ask({"poll": self.process})
        return self.code

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        """The exit code. TimeoutError, and a kill, when it takes longer."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"process {self.process} ran for more than {seconds} s:\n{self.text[-3000:]}")
            time.sleep(POLL_SECONDS)
        return code

    def wait_for(self, words: str, seconds: float = LIMIT_SECONDS) -> None:
        """Until it printed the words. RuntimeError when it ends before."""
        until = time.monotonic() + seconds
        while words not in self.text:
            if self.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"process {self.process} never printed {words!r}:\n{self.text[-3000:]}")
            time.sleep(POLL_SECONDS)

    def send(self, number: int) -> None:
        """A signal, unless it is over."""
        if self.poll() is None:
            os.kill(self.process, number)


class Nursery:
    """The client of the server, which its first request starts. Use as a context manager; outputs go into `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._count = folder, 0

    @cached_property
    def _server(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hotplate.bench.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """One request, one answer."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery ended with code {self._server.wait()}")
        return json.loads(answer)

    def start(self, command: Sequence[str], faults: Sequence[str] = (), **environment: str) -> Child:
        """`hotplate COMMAND ...` under the faults."""
        return self._start({"command": list(command), "faults": list(faults), "environment": environment})

    def torchrun(self, flags: Sequence[str], program: Path, *arguments: str, **environment: str) -> Child:
        """`torchrun FLAGS PROGRAM ARGUMENTS`, whose ranks are forks, too."""
        return self._start({"launch": [*FORKING, *flags, str(program), *arguments], "environment": environment})

    def _start(self, request: dict[str, Any]) -> Child:
        self._count += 1
        output = self._folder / f"{self._count:05d}.txt"
        output.touch()
        return Child(self, self.ask({**request, "output": str(output)}), output)

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if "_server" not in vars(self):
            return
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def _born(request: dict[str, Any]) -> int:
    """Fork a process that runs what the request says; its id."""
    if process := os.fork():
        return process
    code = 70
    try:
        handle = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(handle, number)
        os.close(0)
        os.environ.update(request["environment"])
        from torch.distributed.run import main as torchrun

        from hotplate.bench.faults import child

        if "launch" in request:
            torchrun(request["launch"])
            code = 0
        else:
            code = child.run(request["faults"], request["command"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(process: int) -> int | None:
    """The exit code of a child, None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def load() -> None:
    """Import, once for all, what every training run would: commands, and what they import while they run. A parsed
    config leaves behind what the parser found out about its types."""
    from hotplate.kernels import launch  # here, as who asks the server needs none of it
    from hotplate.train import settings

    rooms = [path for form in FORMS for path in sorted(Path(launch.__file__).parent.glob(f"*/{form}.py"))]
    for name in (*LOADED, *(f"hotplate.kernels.{path.parent.name}.{path.stem}" for path in rooms)):
        importlib.import_module(name)
    settings.parse(settings.load_preset("demo"), [], "")
    gc.freeze()  # collections in a fork would go through, and so copy, all that is loaded


def serve() -> None:
    """Answer requests until there are no more."""
    load()
    for line in sys.stdin:
        request = json.loads(line)
        answer = _ended(request["poll"]) if "poll" in request else _born(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
