"""One module per kernel room; each declares cases(device, quick), which every way of running them shares."""

import importlib
import pkgutil

from hotplate.bench.harness import Case


def names() -> list[str]:
    """The rooms that have a benchmark."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def cases(name: str, device: str, quick: bool) -> list[Case]:
    return importlib.import_module(f"hotplate.bench.kernels.{name}").cases(device, quick)
