"""The console script: `hotplate NAME ...` runs the command that the installed packages registered under NAME."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from hotplate.train.console import complain, say
from hotplate.train.errors import InputError

GROUP = "hotplate.commands"
Main = Callable[[Sequence[str]], int]


def idle_threads_sleep() -> None:
    """Before torch is loaded: OpenMP threads that wait give their core away instead of spinning on it.

    On a machine with anything else to do, spinning threads wait for one another's time slices: see docs/log.md.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def guarded(main: Main, arguments: Sequence[str]) -> int:
    """The command's exit code; a user's mistake is one message on the standard error and
    code 2 (74: the run folder cannot be written)."""
    try:
        return main(arguments)
    except InputError as error:
        complain(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:  # the reader of our output left: nothing to tell it, and nothing more to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def main() -> None:
    """Dispatch on the first argument."""
    idle_threads_sleep()
    commands = {point.name: point for point in entry_points(group=GROUP)}
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        say("usage: hotplate COMMAND ...\n\ncommands: " + ", ".join(sorted(commands)))
        say("\nhotplate COMMAND --help tells more")
        sys.exit(0)
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(commands))}"
        complain(f"error: hotplate has no command {name!r}; {hint}")
        sys.exit(2)
    sys.exit(guarded(commands[name].load(), arguments))
