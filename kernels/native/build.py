"""Compiles a room's `native.c` on first use and loads it through ctypes.

The library is built for the processor it runs on, so it is never shipped: it lives in a cache folder under a name
made of the source, the compiler, its flags and the processor. Two processes may build at once: each writes its own
file and renames it into place.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent
HEADERS = Path(__file__).resolve().parent  # activations.h and what else rooms share

# -ffast-math would let the compiler drop NaN and infinity, which a diverging run must show. These are its harmless
# parts: no errno, no floating-point traps, products fused into sums.
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Werror"),
)
BUILD_SECONDS = 120.0


class NotBuilt(RuntimeError):
    """There is no library, and this says why."""


def _compiler() -> list[str]:
    """The C compiler as a command; $CC first, as everywhere."""
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise NotBuilt("no C compiler: none of cc, gcc, clang is on PATH; install one or set CC")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(f"{command[0]}: {error}") from error
    if done.returncode:
        raise NotBuilt(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr


def _flags() -> list[str]:
    """FLAGS, less the one that only x86 compilers know."""
    x86 = os.uname().machine in ("x86_64", "AMD64")
    return [flag for flag in FLAGS if x86 or not flag.startswith("-mprefer-vector-width")]


@cache
def _toolchain() -> tuple[tuple[str, ...], str]:
    """(compiler command, what identifies it with its flags and this processor); asked once per process."""
    command = _compiler()
    version = _run([*command, "--version"])
    # What -march=native means here: the macros that the processor's instruction sets define.
    macros = _run([*command, *_flags(), "-dM", "-E", "-x", "c", os.devnull])
    return tuple(command), f"{command} {version} {_flags()} {macros}"


def cache_folder() -> Path:
    """$HOTPLATE_CACHE, else $XDG_CACHE_HOME/hotplate, else ~/.cache/hotplate; its `native` folder."""
    named = os.environ.get("HOTPLATE_CACHE")
    if named:
        return Path(named) / "native"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotplate" / "native"


def build(room: str) -> Path:
    """The shared library of kernels/<room>/native.c, compiled unless the cache has it. NotBuilt with the reason."""
    source = KERNELS / room / "native.c"
    if not source.is_file():
        raise NotBuilt(f"{source} does not exist")
    if sys.platform not in ("linux", "darwin"):
        raise NotBuilt(f"native kernels are not built on {sys.platform}")
    command, toolchain = _toolchain()
    texts = [path.read_bytes() for path in (source, *sorted(HEADERS.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*texts, toolchain.encode()])).hexdigest()[:20]
    library = cache_folder() / f"{room}-{key}.so"
    if library.is_file():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=library.parent, suffix=".partial")
    except OSError as error:
        raise NotBuilt(f"{library.parent}: {error}; set HOTPLATE_CACHE to a folder that can be written") from error
    os.close(handle)
    try:
        _run([*command, *_flags(), f"-I{HEADERS}", "-o", partial, str(source), "-lm"])
        os.replace(partial, library)
    finally:
        Path(partial).unlink(missing_ok=True)
    return library


@cache
def _loaded(room: str) -> ctypes.CDLL | NotBuilt:
    try:
        return ctypes.CDLL(str(build(room)))
    except NotBuilt as reason:
        return reason
    except OSError as error:
        return NotBuilt(f"{room}: the built library does not load: {error}")


def load(room: str) -> ctypes.CDLL | None:
    """The library of kernels/<room>/native.c, built on first use; None where it cannot be (see `why_not`)."""
    found = _loaded(room)
    return None if isinstance(found, NotBuilt) else found


def why_not(room: str) -> str | None:
    """Why `load(room)` is None; None where it is not."""
    found = _loaded(room)
    return str(found) if isinstance(found, NotBuilt) else None


def rooms() -> list[str]:
    """Rooms that have a native.c."""
    return sorted(path.parent.name for path in KERNELS.glob("*/native.c"))


def status() -> str:
    """One line for the start of a run: which rooms run native code, and why the others do not. Builds them."""
    reasons = {room: why_not(room) for room in rooms()}
    built = ", ".join(room for room, reason in reasons.items() if reason is None)
    lacking = "; ".join(f"not {room}: {reason.splitlines()[0]}" for room, reason in reasons.items() if reason)
    return f"native CPU kernels: {'; '.join(part for part in (built, lacking) if part) or 'none'}"
