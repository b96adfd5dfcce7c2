"""A small prepared data set, and runs of the trainer in this process and in others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hotplate.train.data.prepare import PrepareConfig, prepare

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "decoder-nano",
    "--model.layers=2",
    "--model.width=32",
    "--model.ffn=64",
    "--model.mixer.heads=2",
    "--model.mixer.head-width=16",
    "--model.vocab=2048",
    "--data.window=32",
    "--batch=8",
    "--device=cpu",
    "--threads=1",
    "--evaluation.tokens=512",
    "--evaluation.sample-tokens=8",
    "--run.log-steps=1",
]


def invented_text(words: int, seed: int) -> str:
    """Sentences over a skewed vocabulary in which each word narrows the next: something to learn."""
    random = np.random.default_rng(seed)
    letters = np.random.default_rng(0).choice(list("etaoinshrdlu"), (600, 6))
    vocabulary = ["".join(row[: 2 + i % 5]) for i, row in enumerate(letters)]
    chosen, word = [], 0
    for number in range(words):
        word = (word * 7 + int(random.zipf(1.6))) % len(vocabulary)
        chosen.append(vocabulary[word] + (".\n" if number % 13 == 12 else ""))
    return " ".join(chosen)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few dozen text files."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        (folder / f"{number:03d}.txt").write_text(invented_text(60 + 37 * (number % 9), number), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as a data set of 2,048 token ids."""
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare(PrepareConfig(source=str(corpus), out=str(out), vocab=2048, validation=0.1, test=0.1, workers=1))
    return out


@pytest.fixture
def hotplate(tmp_path: Path):
    """A function (*arguments, ranks=1, expect=0) that runs `train/main.py` in a process and returns (output, errors)."""

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
