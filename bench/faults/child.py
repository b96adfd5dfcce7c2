"""`python -m hotplate.bench.faults.child FAULT... then COMMAND ...`: a command of hotplate that comes to harm; also the
module that torchrun starts, and what the nursery's processes run."""

import importlib
import sys
from collections.abc import Sequence

from hotplate.bench.faults import injections
from hotplate.train.commands import guarded


def run(faults: Sequence[str], command: Sequence[str]) -> int:
    """The exit code of `hotplate COMMAND ...` in this process, under the faults."""
    injections.apply(list(faults))
    name, *arguments = command
    return guarded(importlib.import_module(f"hotplate.train.commands.{name}").main, arguments)


def main() -> None:
    """As torchrun starts it."""
    at = sys.argv.index("then")
    sys.exit(run(sys.argv[1:at], sys.argv[at + 1 :]))


if __name__ == "__main__":
    main()
