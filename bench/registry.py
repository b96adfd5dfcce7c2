"""Every benchmark by name: one per kernel room, and `step` for whole training steps."""

import importlib
import pkgutil

from hotplate.bench import kernels
from hotplate.bench.harness import Case

STEP = "step"


def names() -> list[str]:
    """Rooms that have a benchmark, then `step`."""
    return [*sorted(module.name for module in pkgutil.iter_modules(kernels.__path__)), STEP]


def cases(name: str, device: str, quick: bool) -> list[Case]:
    """What benchmark `name` times on `device` (cpu or cuda); `quick` shapes show that it runs, not how fast."""
    module = "hotplate.bench.step" if name == STEP else f"hotplate.bench.kernels.{name}"
    return importlib.import_module(module).cases(device, quick)
