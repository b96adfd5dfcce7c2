"""`hotplate bench`: times kernels and whole steps against their peers; its verbs read and guard what came of it."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from hotplate.bench import registry, results
from hotplate.train import settings
from hotplate.train.console import say
from hotplate.train.environment import environment
from hotplate.train.errors import InputError

CASES = Path(__file__).resolve().parent.parent / "test_cases.py"
OUT_OF_TIME = 75  # exit code of what is to be asked again, as of a training run that was interrupted
VERBS = ("diff", "readme", "gates", "ratio", "trained")  # each a module of this folder


@dataclass(frozen=True)
class Options:
    """Time kernels against their peers, side by side, after checking each against float64.

    Verbs instead of names: `hotplate bench diff A.json B.json`, `readme`, `gates`, `ratio`, `trained`.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Benchmarks to run; none: all of them."""
    json: Path | None = None
    """Where the rows go, figures beside; not given: bench/results/<machine>-<date>.json, nowhere with --quick."""
    add: bool = False
    """Keep the rows of --json's file, and time only cases that have none there."""
    case: str = ""
    """Only cases with this in their names."""
    only: tuple[str, ...] = ()
    """Providers to time; none named: all."""
    without: tuple[str, ...] = ()
    """Providers to leave out."""
    seconds: float | None = None
    """Begin no further case after so long."""
    quick: bool = False
    """Small shapes and few rounds: shows that everything runs, says little about speed."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu or cuda."""
    threads: int = 1
    """CPU threads; with 1, wall and processor time are comparable."""


def main(arguments: Sequence[str]) -> int:
    """Exit code 0; 1 when a provider computes something else than its case asks for, or ends; OUT_OF_TIME when
    --seconds left cases out."""
    if arguments and arguments[0] in VERBS:
        return importlib.import_module(f"hotplate.bench.commands.{arguments[0]}").main(arguments[1:])
    options = settings.parse(Options(), arguments, "hotplate bench")
    known = registry.names()
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        raise InputError(f"bench: no benchmark called {', '.join(unknown)}; known: {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("bench: --device cuda, but torch sees no GPU here; use --device cpu")
    if options.device not in ("cpu", "cuda"):
        raise InputError(f"bench: --device {options.device} is neither cpu nor cuda")
    if options.add and options.json is None:
        raise InputError("bench: --add, but to no file; name one with --json")
    if options.add and options.json is not None and options.json.exists():
        results.want_same(options.json, environment(torch.device(options.device)))
    return _under_pytest(options)


def _under_pytest(options: Options) -> int:
    """pytest-benchmark over the chosen rooms; its own table is left out for ours, which knows floors and errors."""
    for name in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"bench: needs {name.replace('_', '-')}; pip install 'hotplate[dev]'")
    import pytest

    flags = [str(CASES), "--import-mode=importlib", "--benchmark-only", "--benchmark-quiet", "-q", "-s", "--no-header"]
    flags += ["-p", "no:cacheprovider", "--disable-warnings", f"--on={options.device}", f"--threads={options.threads}"]
    flags += [f"--rooms={','.join(options.names or registry.names())}"]
    flags += [f"--case={options.case}", *(f"--only={name}" for name in options.only)]
    flags += [f"--without={name}" for name in options.without]
    flags += ["--quick"] if options.quick else []
    flags += ["--add"] if options.add else []
    flags += [] if options.seconds is None else [f"--seconds={options.seconds}"]
    flags += [f"--rows={options.json.absolute()}"] if options.json is not None else []
    code = int(pytest.main(flags))
    if code == OUT_OF_TIME:
        say(f"bench: cases were left out after --seconds {options.seconds:g}; --add goes on with them")
        return code
    if code:
        say("bench: a case above was not timed")
    return min(code, 1)
