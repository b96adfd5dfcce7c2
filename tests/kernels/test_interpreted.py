"""Runs the Triton kernels in Triton's interpreter: every interpreted_*.py, in a process of their own.

The interpreter is chosen when a kernel is defined, and it patches triton.language: kernels that another test compiles
must live in another process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


OPTIONS = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "brisk_interpreter"]
FILES = sorted(HERE.glob("interpreted_*.py"))
PARTS = 2  # processes, each of some files: what a test's time limit allows


@pytest.mark.parametrize("part", range(PARTS))
def test_kernels_agree_with_the_definition_in_the_interpreter(part):
    assert {"interpreted_qlstm", "interpreted_lstm_diagonal"} <= {path.stem for path in FILES}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *map(str, FILES[part::PARTS])],
        cwd=HERE.parent.parent,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and " skipped" not in done.stdout, done.stdout + done.stderr
