"""What is made ready for a GPU machine here: code that ran on a stand-in, kernels compiled ahead, the script for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotplate.bench import kernel_cache
from hotplate.bench.gates import gpu

ROOT = Path(__file__).resolve().parents[2]
REHEARSE = [sys.executable, "-W", "ignore", "-m", "hotplate.bench.stand_in.rehearse"]


def rehearsed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if reason := gpu.why_not():
        pytest.skip(reason)
    return subprocess.run([*REHEARSE, str(folder), *arguments], capture_output=True, text=True, check=False)


def test_kernels_compiled_ahead_are_found_where_they_were_carried(tmp_path: Path) -> None:
    made, carried = tmp_path / "made", tmp_path / "carried"
    first = rehearsed(made, "--quick", "rotary")
    assert first.returncode == 0, first.stderr[-2000:]
    assert "rotary: 4 calls" in first.stdout and "FAILED" not in first.stdout
    made.rename(carried)
    kernels = {path: path.stat().st_mtime_ns for path in carried.glob("*/*.cubin")}
    assert len(kernels) > 2
    assert {path.suffix for path in carried.glob("*/*")} <= set(kernel_cache.NEEDED)
    assert kernel_cache.main([str(carried)]) == 0
    for group in carried.glob("*/__grp__*"):
        paths = json.loads(group.read_text())["child_paths"]
        assert all(Path(path).parent == group.parent for path in paths.values())
    again = rehearsed(carried, "--quick", "rotary")
    assert again.returncode == 0 and again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in carried.glob("*/*.cubin")} == kernels, "compiled again"


def test_a_rehearsal_tells_what_does_not_run(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, "--quick", "check-float8")
    assert found.returncode == 1 and found.stdout == "check-float8: ended without a word, exit code 1\n"


def test_the_script_for_a_gpu_machine_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """On a CPU, with small shapes of one room, one stage of all."""
    out, kept = tmp_path / "out", {k: v for k, v in os.environ.items() if k != "PYTEST_XDIST_WORKER"}
    chosen = {"DEVICE": "cpu", "QUICK": "1", "ROOMS": "rotary", "OUT": str(tmp_path), "PYTHON": sys.executable}
    script = [str(ROOT / "bench" / "gpu.sh"), str(out)]

    def run(seconds: int, *stages: str) -> list[str]:
        told = kept | chosen | {"STAGES": " ".join(stages)}
        done = subprocess.run([*script, str(seconds)], capture_output=True, text=True, env=told, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [line for line in done.stdout.splitlines() if line.startswith("==")]

    assert run(0, "ours-rooms") == ["== ours-rooms: not begun, no time left"]
    (line,) = run(300, "ours-rooms")
    assert line.startswith("== ours-rooms: ") and line.endswith(" s"), line
    rows = json.loads((out / "ours.json").read_text())["rows"]
    assert {row["provider"] for row in rows} == {"native"}
    assert run(300, "ours-rooms") == []
    assert (tmp_path / "gpu.tar.gz").stat().st_size > 1000
