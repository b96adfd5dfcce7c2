"""Checkpoints: complete or absent, verified, and never unpickled."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hotplate.train import checkpoint
from hotplate.train.errors import InputError

TENSORS = {
    "model": {"weight": torch.arange(6.0).view(2, 3)},
    "optimizer": {"step.weight": torch.tensor(3.0)},
    "state": {"random.cpu": torch.get_rng_state()},
}


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 12, TENSORS, {"step": 12})
    found = checkpoint.load(path)
    assert path.name == "step-00000012" and found.trainer == {"step": 12}
    for part in TENSORS:
        for name, value in TENSORS[part].items():
            assert torch.equal(getattr(found, part)[name], value)


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step})
    checkpoint.prune(tmp_path, 2)
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path)] == [3, 20]
    checkpoint.prune(tmp_path, 0)
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path)] == [20]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.safetensors", "trainer.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "symlink"])
def test_damage_is_found_named_and_survived(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})
    path = checkpoint.save(tmp_path, 2, TENSORS, {"step": 2})
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
        if damage == "symlink":
            file.symlink_to(tmp_path / "step-00000001" / name)
    with pytest.raises(InputError, match=name):
        checkpoint.load(path)
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None and found.trainer["step"] == 1 and name in problems[0]


def test_when_nothing_verifies_nothing_is_started_over(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})
    (path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no checkpoint can be read:\n.*manifest.json: missing"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{", '{"model.safetensors": 1}', '{"../../etc/passwd": {}}', "[" * 100_000, '"\\ud800"']
)
def test_foreign_manifests_are_refused(tmp_path: Path, manifest: str) -> None:
    path = checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})
    (path / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(InputError, match="manifest.json"):
        checkpoint.load(path)


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_in_place_of_weights_is_not_executed(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})
    trap = tmp_path / "executed"
    (path / "model.safetensors").write_bytes(pickle.dumps(Touch(str(trap))))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["model.safetensors"] = checkpoint._fact(path / "model.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="not a safetensors file"):
        checkpoint.load(path)
    assert not trap.exists()


def test_a_full_disk_leaves_older_checkpoints_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, TENSORS, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_json", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, TENSORS, {"step": 2})
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    assert checkpoint.newest(tmp_path)[0] is not None


KILLED_WHILE_SAVING = """
    import os, signal, sys, torch
    from pathlib import Path
    from hotplate.train import checkpoint
    folder, point = Path(sys.argv[1]), int(sys.argv[2])
    calls = 0
    def trap(function):
        def wrapped(*arguments, **options):
            global calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped
    for module, name in ((checkpoint, "_write_json"), (checkpoint, "_fact"), (checkpoint, "_flush"),
                         (checkpoint.safetensors.torch, "save_file"), (Path, "rename"), (Path, "mkdir"),
                         (checkpoint.shutil, "rmtree")):
        setattr(module, name, trap(getattr(module, name)))
    weights = {"weight": torch.full((4,), 2.0)}
    checkpoint.save(folder, 2, {"model": weights, "optimizer": weights, "state": weights}, {"step": 2})
    checkpoint.prune(folder, 1)
    print(calls)
"""


def test_a_kill_at_any_point_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    program = textwrap.dedent(KILLED_WHILE_SAVING)

    def attempt(folder: Path, point: int) -> subprocess.CompletedProcess:
        checkpoint.save(folder, 1, TENSORS, {"step": 1})
        command = [sys.executable, "-c", program, str(folder), str(point)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    points = int(attempt(tmp_path / "all", 10_000).stdout)
    assert points > 12
    chosen = sorted({1, 2, 5, points - 4, points - 3, points - 2, points - 1, points})
    for point in chosen:
        folder = tmp_path / str(point)
        assert attempt(folder, point).returncode == -signal.SIGKILL
        found, problems = checkpoint.newest(folder)
        assert found is not None and found.trainer["step"] in (1, 2) and not problems
        checkpoint.clean(folder)
        assert all(path.name.startswith("step-") for path in folder.iterdir())


def test_an_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, TENSORS, {"step": 1})
    assert os.listdir(tmp_path) == ["file"]
