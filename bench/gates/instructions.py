"""Instructions of host code that needs no device: building the rows of an epoch, counted by valgrind.

A workload runs in a process of its own under valgrind, once with few and once with many repetitions; their difference
over the repetitions is free of what importing costs. Where there is no valgrind the gate says so and checks nothing.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FEW, MANY = 1, 3
MARGIN = 0.01  # of the recorded count: hashes and addresses move it a little
# Runs as its own process, with numpy but without torch: importing torch under valgrind takes minutes.
WORKLOADS = {
    "packing 2,000 documents into rows of 512": """
import sys, numpy
from hotplate.train.data.packing import plan_rows
lengths = numpy.random.default_rng(0).lognormal(5.5, 1.0, 2000).astype("int64") + 2
starts = numpy.concatenate([[0], lengths.cumsum()])
for _ in range(int(sys.argv[1])):
    plan_rows(starts, 512, 0)
""",
}


def why_not() -> str | None:
    """Why nothing can be counted here; None where it can."""
    return None if shutil.which("valgrind") else "no valgrind on this machine (apt-get install valgrind)"


def measure(name: str) -> dict[str, int]:
    """{"instructions": of one repetition}."""
    counts = [_count(WORKLOADS[name], repetitions) for repetitions in (FEW, MANY)]
    return {"instructions": (counts[1] - counts[0]) // (MANY - FEW)}


def _count(code: str, repetitions: int) -> int:
    """Instructions of a process that runs `code`. RuntimeError when it fails."""
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    python = str(Path(sys.executable).resolve()) if sys.prefix == sys.base_prefix else sys.executable
    calm = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [*tool, python, "-c", code, str(repetitions)], capture_output=True, text=True, env=os.environ | calm
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"valgrind: {done.stderr.strip().splitlines()[-1:]}")
    return int(found[1].replace(",", ""))
