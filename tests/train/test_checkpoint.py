"""Checkpoints: complete or absent, verified, and never unpickled."""

import dataclasses
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from hotplate.train import checkpoint, tensor_files
from hotplate.train.errors import InputError, StorageError
from hotplate.train.guard import Saves
from hotplate.train.ranks import ALONE
from hotplate.train.saving import Saver
from hotplate.train.tensor_files import Piece

TENSORS = {
    "model": {"weight": torch.arange(6.0).view(2, 3)},
    "optimizer": {"step.weight": torch.tensor(3.0)},
    "state": {"random.cpu": torch.get_rng_state()},
}
FILES = ["model-00000.safetensors", "optimizer-00000.safetensors", "state-00000.safetensors", "trainer.json"]


def save(folder: Path, step: int) -> Path:
    """A checkpoint of the tensors above, by one process."""
    path = checkpoint.folder_of(folder, step)
    checkpoint.write(path, TENSORS, {"step": step})
    return path


def saver(folder: Path, keep: int = 2, say=print) -> Saver:
    return Saver(folder, keep, ALONE, Saves(1, 99, say))


def pieces(tensors) -> dict[str, dict[str, Piece]]:
    return {part: {name: Piece.whole(x) for name, x in found.items()} for part, found in tensors.items()}


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    found = checkpoint.load(path)
    assert path.name == "step-00000012" and found.trainer == {"step": 12}
    for part in TENSORS:
        for name, value in TENSORS[part].items():
            assert torch.equal(getattr(found, part)[name], value)


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 2)
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path)] == [3, 20]
    checkpoint.prune(tmp_path, 0)
    assert [checkpoint.step_of(p) for p in checkpoint.listing(tmp_path)] == [20]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "symlink"])
def test_damage_is_found_named_and_survived(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
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
    path = save(tmp_path, 1)
    (path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no checkpoint can be read:\n.*manifest.json: missing"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize("cut", [(0, 24), (0, 7, 24), (0, 8, 16, 24), (0, 0, 5, 5, 23, 24)])
def test_pieces_of_any_ranks_read_as_the_whole_and_as_any_part(tmp_path: Path, cut: tuple[int, ...]) -> None:
    whole, scalar = torch.randn(6, 4), torch.tensor(3.0, dtype=torch.bfloat16)
    empty, final = torch.zeros(0, 5), tmp_path / "step-00000001"
    shards = []
    for rank, (start, stop) in enumerate(zip(cut[:-1], cut[1:], strict=True)):
        model = {"weight": Piece(whole.flatten()[start:stop], (6, 4), start)}
        if rank == 0:
            model |= {"scalar": Piece.whole(scalar), "empty": Piece.whole(empty)}
        shards.append(checkpoint.write_shard(tmp_path / "new", rank, {"model": model, "optimizer": {}, "state": {}}))
    checkpoint.commit(tmp_path / "new", final, shards, {"step": 1})
    found = checkpoint.load(final).model
    assert found.keys() == {"weight", "scalar", "empty"}
    assert torch.equal(found["weight"], whole) and torch.equal(found["scalar"], scalar)
    assert found["empty"].shape == (0, 5)
    for start, stop in ((0, 24), (3, 9), (7, 7), (22, 24)):
        assert torch.equal(found.part("weight", start, stop), whole.flatten()[start:stop])


@pytest.mark.parametrize("cuts", [((0, 8), (9, 24)), ((0, 8), (7, 24)), ((0, 8),), ((0, 24), (24, 30))])
def test_pieces_that_do_not_meet_are_never_committed(tmp_path: Path, cuts) -> None:
    data = torch.randn(30)
    shards = [
        checkpoint.write_shard(tmp_path / "new", rank, {"model": {"weight": Piece(data[a:b], (6, 4), a)}})
        for rank, (a, b) in enumerate(cuts)
    ]
    with pytest.raises(ValueError, match="of weight"):
        checkpoint.commit(tmp_path / "new", tmp_path / "step-00000001", shards, {})
    assert not checkpoint.listing(tmp_path)


def test_the_bytes_saved_are_those_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going, go_on = threading.Event(), threading.Event()
    kept = checkpoint.write_shard

    def slow(*arguments):
        going.set()
        assert go_on.wait(60)
        return kept(*arguments)

    monkeypatch.setattr(checkpoint, "write_shard", slow)
    weight = torch.ones(1000)
    writer = saver(tmp_path)
    writer.save(7, pieces({"model": {"weight": weight}, "optimizer": {}, "state": {}}), {"step": 7})
    assert going.wait(60) and not checkpoint.listing(tmp_path)  # training goes on while nothing is written yet
    weight.zero_()
    go_on.set()
    assert writer.wait()
    assert torch.equal(checkpoint.load(checkpoint.listing(tmp_path)[-1]).model["weight"], torch.ones(1000))


def test_retention_counts_complete_checkpoints_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    kept = checkpoint.write_shard

    def look(*arguments):
        seen.append([checkpoint.step_of(path) for path in checkpoint.listing(tmp_path)])
        return kept(*arguments)

    monkeypatch.setattr(checkpoint, "write_shard", look)
    writer = saver(tmp_path, 1)
    for step in (1, 2, 3):
        writer.save(step, pieces(TENSORS), {"step": step})
    assert writer.wait()
    assert seen == [[], [1], [2]]  # while one is being written, the one before is there
    (tmp_path / "step-00000009").mkdir()  # looks newer, holds nothing
    save(tmp_path, 4)
    (tmp_path / "step-00000004" / "model-00000.safetensors").write_bytes(b"short")
    assert checkpoint.prune(tmp_path, 1) == []
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None and found.trainer["step"] == 3 and len(problems) == 2
    aside = checkpoint.set_aside(tmp_path / "step-00000004")
    assert aside.is_dir() and checkpoint.step_of(checkpoint.listing(tmp_path)[-2]) == 3


GOOD = {"bytes": 100, "sha256": "0" * 64}
FOREIGN = [
    "",
    "[]",
    "{",
    "[" * 100_000,
    '"\\ud800"',
    '{"model.safetensors": {"bytes": 1}}',
    json.dumps({"format": 2, "files": {"trainer.json": GOOD, "../../etc/passwd": GOOD}, "tensors": {}}),
    json.dumps({"format": 2, "files": {"trainer.json": GOOD}, "tensors": {"model": {}}}),
    json.dumps({"format": 3, "files": {}, "tensors": {}}),
]
ENTRIES = {
    "a gap": {"dtype": "F32", "shape": [8], "pieces": [[0, 1]]},
    "disorder": {"dtype": "F32", "shape": [8], "pieces": [[0, 0], [1, 6], [2, 3]]},
    "beyond the end": {"dtype": "F32", "shape": [8], "pieces": [[0, 0], [0, 8]]},
    "no file": {"dtype": "F32", "shape": [8], "pieces": [[7, 0]]},
    "a bomb": {"dtype": "F32", "shape": [1 << 39], "pieces": [[0, 0]]},
    "a larger bomb": {"dtype": "F32", "shape": [1 << 39] * 8, "pieces": [[0, 0]]},
    "a negative size": {"dtype": "F32", "shape": [-8, -1], "pieces": [[0, 0]]},
    "another type": {"dtype": "F4", "shape": [8], "pieces": [[0, 0]]},
    "a truth as number": {"dtype": "F32", "shape": [True], "pieces": [[0, 0]]},
    "a long name": {"dtype": "F32", "shape": [8], "pieces": [["../x", 0]]},
}


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_manifests_are_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="manifest.json"):
        checkpoint.load(path)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_manifests_that_lie_about_tensors_are_refused(tmp_path: Path, entry) -> None:
    path = save(tmp_path, 1)
    value = json.loads((path / "manifest.json").read_text())
    value["tensors"]["model"]["weight"] = entry
    (path / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match="manifest.json"):
        checkpoint.load(path)


def test_a_manifest_of_other_tensors_than_the_files_is_found_when_they_are_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    value = json.loads((path / "manifest.json").read_text())
    value["tensors"]["model"]["weight"]["shape"] = [3, 2]
    (path / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match="model-00000.safetensors: want weight as"):
        dict(checkpoint.load(path).model)


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_in_place_of_weights_is_not_executed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    trap = tmp_path / "executed"
    replace_and_sign(path, "model-00000.safetensors", pickle.dumps(Touch(str(trap))))
    with pytest.raises(InputError, match="not a safetensors file"):
        dict(checkpoint.load(path).model)
    assert not trap.exists()


def replace_and_sign(path: Path, name: str, content: bytes) -> None:
    """Another content for a file of the checkpoint, and its hash in the manifest."""
    value = json.loads((path / "manifest.json").read_text())
    padded = content.ljust(value["files"][name]["bytes"], b"\0")  # so that the tensors seem to fit
    (path / name).write_bytes(padded)
    value["files"][name] = dataclasses.asdict(tensor_files.fact(path / name))
    (path / "manifest.json").write_text(json.dumps(value))


def test_a_header_larger_than_its_file_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    replace_and_sign(path, "model-00000.safetensors", (1 << 60).to_bytes(8, "little"))
    with pytest.raises(InputError, match="its header would have"):
        dict(checkpoint.load(path).model)


def test_a_full_disk_leaves_older_checkpoints_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    complaints: list[str] = []
    writer = saver(tmp_path, 2, complaints.append)
    for module, name in ((checkpoint, "_write_json"), (tensor_files, "write")):
        monkeypatch.setattr(module, name, full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
        writer.save(2, pieces(TENSORS), {"step": 2})
        assert not writer.wait()
        assert "step 2 not saved" in complaints[-1] and "No space left" in complaints[-1]
        monkeypatch.undo()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    writer.save(2, pieces(TENSORS), {"step": 2})
    assert writer.wait() and checkpoint.newest(tmp_path)[0] is not None


def test_a_disk_that_recovers_gets_the_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, calls = tensor_files.write, []

    def shaky(path: Path, *arguments):
        calls.append(path.name)
        if len(calls) in (2, 3):  # the second file of the first attempt, the first file of the second
            path.write_bytes(b"half")
            raise OSError(errno.EIO, "Input/output error")
        return kept(path, *arguments)

    monkeypatch.setattr(tensor_files, "write", shaky)
    said: list[str] = []
    writer = Saver(tmp_path, 2, ALONE, Saves(3, 1, said.append, pause=0.01))
    writer.save(4, pieces(TENSORS), {"step": 4})
    assert writer.wait() and len(said) == 2 and "trying again" in said[0]
    assert checkpoint.problem(tmp_path / "step-00000004") is None


def test_too_many_failures_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files, "write", full)
    writer = Saver(tmp_path, 2, ALONE, Saves(3, 2, print))
    writer.save(1, pieces(TENSORS), {})
    writer.save(2, pieces(TENSORS), {})
    with pytest.raises(StorageError, match="step 2 not saved: .*that were 2 in a row"):
        writer.wait()


def test_what_was_not_foreseen_reaches_the_training_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint, "commit", broken)
    writer = saver(tmp_path)
    writer.save(1, pieces(TENSORS), {})
    with pytest.raises(ZeroDivisionError):
        writer.wait()


KILLED_WHILE_SAVING = """
    import os, signal, sys, torch
    from pathlib import Path
    from hotplate.train import checkpoint, saving, tensor_files
    from hotplate.train.guard import Saves
    from hotplate.train.ranks import ALONE
    calls = 0
    def trap(function):
        def wrapped(*arguments, **options):
            global calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped
    for module, name in ((checkpoint, "_write_json"), (tensor_files, "fact"), (checkpoint, "_flush"),
                         (tensor_files, "write"), (Path, "rename"), (Path, "mkdir"), (Path, "open"),
                         (os, "fsync"), (checkpoint.shutil, "rmtree")):
        setattr(module, name, trap(getattr(module, name)))
    weights = {"weight": tensor_files.Piece.whole(torch.full((4,), 2.0))}
    for line in sys.stdin:
        folder, point = Path(line.split()[0]), int(line.split()[1])
        if not (child := os.fork()):
            saver = saving.Saver(folder, 1, ALONE, Saves(1, 1, print))
            saver.save(2, {"model": weights, "optimizer": weights, "state": weights}, {"step": 2})
            saver.wait()
            os._exit(calls)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_kill_at_any_point_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process for each point, forked from one that has loaded torch."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED_WHILE_SAVING)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as parent:

        def attempt(folder: Path, point: int) -> int:
            """The exit code: calls made, or minus the signal."""
            save(folder, 1)
            parent.stdin.write(f"{folder} {point}\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        points = attempt(tmp_path / "all", 10_000)
        assert points > 12
        for point in range(1, points + 1):
            folder = tmp_path / str(point)
            assert attempt(folder, point) == -signal.SIGKILL
            found, problems = checkpoint.newest(folder)
            assert found is not None and found.trainer["step"] in (1, 2) and not problems
            checkpoint.clean(folder)
            assert all(path.name.startswith("step-") for path in folder.iterdir())


def test_an_unwritable_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save(tmp_path / "file" / "checkpoints", 1)
    assert os.listdir(tmp_path) == ["file"]
