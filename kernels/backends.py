"""Whether something optional can be used here, found out without side effects.

An installed package is looked for, not imported: importing one may take seconds, start a driver or claim memory. It is
imported when everything else allows its use, and then what its import says is the reason. What a name stands for is
the owner's matter: attention's backends are in attention/adapters.py, the optimiser's here.
"""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from hotplate.kernels import native
from hotplate.kernels.native.build import rooms


@dataclass(frozen=True)
class Status:
    """One line of `hotplate backends`."""

    part: str  # attention, optimiser, recurrent
    name: str
    available: bool
    reason: str  # why not, or what it serves
    version: str | None


def installed(module: str) -> bool:
    """Whether a top-level module would be found, unless its parent package has to run to know."""
    try:
        return importlib.util.find_spec(module.split(".")[0]) is not None and _inside(module)
    except (ImportError, ValueError):  # a module without a spec, put into sys.modules by hand
        return False


def _inside(module: str) -> bool:
    """Whether the submodule's file or folder lies in the package, which is not imported to find out."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if not rest or spec is None:
        return spec is not None
    places = [Path(place, *rest) for place in spec.submodule_search_locations or []]
    return any(place.is_dir() or place.with_suffix(".py").is_file() for place in places)


@cache
def broken(module: str) -> str | None:
    """What importing the module raises, in one line; None where it imports. Asked once per process."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError, NameError, TypeError, ValueError) as error:
        return f"{module} does not import: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


@cache
def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def capability(device: torch.device | None = None) -> tuple[int, int] | None:
    """Of a CUDA device (None: the current one); None where there is none."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


FUSED_ADAM = {"apex": "apex.optimizers", "deepspeed": "deepspeed.ops.adam"}
PYPI_APEX = "; NVIDIA's is built from source, github.com/NVIDIA/apex: the apex on PyPI is another project"


def why_no_fused_adam(package: str, device: torch.device) -> str | None:
    """Why a package's fused Adam cannot update tensors on `device`; None where it can, as far as can be told without
    building it: DeepSpeed compiles it at its first use. (It has a CPU form too, which takes minutes to build.)"""
    module, hint = FUSED_ADAM[package], PYPI_APEX if package == "apex" else ""
    if not installed(package):
        return f"{package} is not installed{hint}"
    if not installed(module):
        return f"{package} {version(package) or ''} has no {module}".replace("  ", " ") + hint
    if device.type != "cuda" or capability() is None:
        return f"needs a CUDA device{hint}"
    if (why := broken(module)) is not None:
        return why + hint
    return None if hasattr(importlib.import_module(module), "FusedAdam") else f"{module} has no FusedAdam{hint}"


def optimizers() -> list[Status]:
    """The optimiser's backends: torch's own, what Triton needs to launch, and the fused Adam of apex and DeepSpeed."""
    triton = None if installed("triton") else "triton is not installed"
    here = torch.device("cuda" if capability() else "cpu")
    reasons = {
        "torch": (None, torch.__version__),
        "triton": (triton or (None if capability() else "needs a CUDA device"), version("triton")),
        **{name: (why_no_fused_adam(name, here), version(name)) for name in FUSED_ADAM},
    }
    return [
        Status("optimiser", name, why is None, why or "can be used", found) for name, (why, found) in reasons.items()
    ]


def recurrent() -> list[Status]:
    """Which recurrent rooms run C on this CPU, and whether Triton can run them here. Builds the C libraries."""
    rows = []
    for room in rooms():
        why = native.why_not(room)
        rows.append(Status("recurrent", f"{room} native", why is None, why.splitlines()[0] if why else "built", None))
    triton = None if installed("triton") else "triton is not installed"
    triton = triton or (None if capability() else "needs a CUDA device")
    return [*rows, Status("recurrent", "triton", triton is None, triton or "CUDA tensors", version("triton"))]
