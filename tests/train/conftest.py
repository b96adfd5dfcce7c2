"""A small prepared data set, and runs of the trainer in this process and in others."""

import socket
from pathlib import Path

import pytest
from tiny import TINY, invented_text

from hotplate.bench.faults.nursery import Nursery
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
def hotplate(nursery: Nursery):
    """A function (*arguments, ranks=1, expect=0) that trains in a process per rank: what the first one printed."""

    def run(*arguments: str, ranks: int = 1, expect: int = 0) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        group |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
        environments = [{**group, "RANK": str(n), "LOCAL_RANK": str(n)} if ranks > 1 else {} for n in range(ranks)]
        children = [nursery.start(["train", *arguments], **environment) for environment in environments]
        for child in children:
            assert child.wait() == expect, f"exit {child.code}\n{child.text}"
        return children[0].text

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
