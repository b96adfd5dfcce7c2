"""The console script: `hotplate NAME ...` runs the command that the installed packages registered under NAME."""

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from hotplate.train.console import complain, say
from hotplate.train.errors import InputError

GROUP = "hotplate.commands"
Main = Callable[[Sequence[str]], int]


def guarded(main: Main, arguments: Sequence[str]) -> int:
    """The command's exit code; a user's mistake is one message on the standard error and code 2."""
    try:
        return main(arguments)
    except InputError as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def main() -> None:
    """Dispatch on the first argument."""
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
