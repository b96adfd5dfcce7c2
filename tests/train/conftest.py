"""A small prepared data set, and runs of the trainer in this process and in others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT, TINY, invented_text

from hotplate.train.commands import guarded
from hotplate.train.data.prepare import PrepareConfig, prepare


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few dozen text files."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(120):
        (folder / f"{number:03d}.txt").write_text(invented_text(60 + 25 * (number % 9), number), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as a data set of 2,048 token ids."""
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare(PrepareConfig(source=str(corpus), out=str(out), vocab=2048, validation=0.1, test=0.1, workers=1))
    return out


@pytest.fixture
def hotplate(tmp_path: Path):
    """A function (*arguments, ranks=1, expect=0) that runs `train/main.py` in a process: (output, errors)."""

    def run(*arguments: str, ranks: int = 1, expect: int = 0, environment: dict[str, str] | None = None):
        python = [sys.executable]
        if ranks > 1:
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        done = subprocess.run(
            [*python, str(ROOT / "train" / "main.py"), *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    return run


@pytest.fixture
def train_tiny(prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function (*flags) that trains a tiny model in this process and returns its exit code."""
    from hotplate.train.commands.train import main

    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> int:
        return main([*TINY, f"--data.source={prepared}", *flags])

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function (command, *arguments) -> the one error message of a command that must exit with 2."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments: str) -> str:
        assert guarded(command.main, list(arguments)) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and "Traceback" not in errors
        return errors

    return run
