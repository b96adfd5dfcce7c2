"""What a training step on a GPU launches and moves, counted without one: a stand-in's process does it (stand_in/).

Every Triton kernel of the step is compiled for compute capability 9.0 as it is launched, and must fit; a step that
waits for the device fails. So do differences from the recorded counts, also for the better.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from hotplate.bench.stand_in import library

WORKLOADS = (
    *(f"{model}-small eager" for model in ("gpt", "qlstm", "lstm", "lstm-dense", "lstm-diagonal")),
    "decoder-360m eager",
    *("gpt-small compiled", "decoder-360m compiled"),
)
SECONDS = 900


def why_not() -> str | None:
    """Why nothing can be counted here; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "no module named triton"
    return None if library.compiler() else "no C++ compiler on PATH, and CXX names none"


def measure(workloads: Sequence[str] = WORKLOADS) -> dict[str, dict[str, Any]]:
    """Counts by workload. RuntimeError with the process's last words when it fails."""
    command = [sys.executable, "-W", "ignore", "-m", "hotplate.bench.stand_in.worker", *workloads]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise RuntimeError(f"gpu: {workloads[0]} and on, on the stand-in GPU: {last}")
    return json.loads(done.stdout.splitlines()[-1])
