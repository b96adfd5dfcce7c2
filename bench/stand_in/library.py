"""Builds `device.cpp` with torch's headers and loads it. Imports no torch: the library must be there before it."""

import ctypes
import importlib.util
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")


def _torch() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("stand-in GPU: torch is not installed")
    return Path(found.origin).parent


def compiler() -> list[str] | None:
    """The C++ compiler as a command, $CXX first; None without one."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    return next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def load() -> ctypes.CDLL:
    """The device, in this process, which has not imported torch. RuntimeError without a compiler or where it fails."""
    command, torch = compiler(), _torch()
    if command is None:
        raise RuntimeError(
            "stand-in GPU: no C++ compiler: none of c++, g++, clang++ is on PATH; install one or set CXX"
        )
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "device.so"
        options = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch / 'include'}", "-o", str(library)]
        linked = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        done = subprocess.run([*command, str(SOURCE), *options, *linked], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"stand-in GPU: {' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
        return ctypes.CDLL(str(library))
