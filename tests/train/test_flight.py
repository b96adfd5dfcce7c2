"""NCCL's flight recorder is set up before ranks join, and the watchdog says where its dumps are."""

import os
import time
from pathlib import Path

import pytest
import torch

from hotplate.train import flight, ranks
from hotplate.train.budget import Goodput
from hotplate.train.settings import load_preset, parse
from hotplate.train.watchdog import FOLDER, Watchdog

NAMES = (*flight.BUFFER, *flight.DUMP_ON_TIMEOUT, *flight.PREFIX)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


class Joined(Exception):
    """Raised in place of making the process group."""


def environment_at_joining(monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[str, str]:
    """The recorder's variables when rank 0 of 2 on CUDA would make its process group."""
    found: dict[str, str] = {}

    def join(backend: str, timeout: object) -> None:
        assert backend == "nccl"
        found.update({name: os.environ[name] for name in NAMES if name in os.environ})
        raise Joined

    monkeypatch.setattr(ranks, "join", join)
    monkeypatch.setattr(ranks, "_device", lambda config, local: torch.device("cuda", 0))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Joined):
        ranks.start(parse(load_preset("decoder-nano"), flags, ""))
    return found


def test_collectives_are_recorded_from_the_first(tmp_path: Path, monkeypatch) -> None:
    found = environment_at_joining(monkeypatch, f"--run.folder={tmp_path / 'run'}")
    prefix = str(tmp_path / "run" / FOLDER / flight.NAME)
    assert found == {flight.BUFFER[0]: flight.COLLECTIVES, flight.DUMP_ON_TIMEOUT[0]: "1", flight.PREFIX[0]: prefix}
    assert (tmp_path / "run" / FOLDER).is_dir()


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch) -> None:
    mine = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0", "TORCH_FR_DUMP_TEMP_FILE": "/x/y"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    assert environment_at_joining(monkeypatch, f"--run.folder={tmp_path / 'run'}") == mine


def test_a_run_that_fails_says_where_the_dumps_are(tmp_path: Path) -> None:
    flight.record(tmp_path / FOLDER)
    dumped, said = tmp_path / FOLDER / f"{flight.NAME}0", []
    old = dumped.with_name(f"{flight.NAME}1")
    old.touch()
    os.utime(old, (1, 1))
    with pytest.raises(RuntimeError, match="peer"), Watchdog(tmp_path, ranks.ALONE, Goodput(), 0, said.append):
        assert len(said) == 1 and said[0].startswith("from the processes before") and str(old) in said[0]
        dumped.touch()
        os.utime(dumped, (time.time() + 1,) * 2)
        raise RuntimeError("a peer is gone")
    assert len(said) == 2 and str(dumped) in said[1] and str(old) not in said[1]


def test_a_run_without_dumps_says_nothing(tmp_path: Path) -> None:
    flight.record(tmp_path / FOLDER)
    said: list[str] = []
    with pytest.raises(RuntimeError), Watchdog(tmp_path, ranks.ALONE, Goodput(), 0, said.append):
        raise RuntimeError("another")
    assert said == []
