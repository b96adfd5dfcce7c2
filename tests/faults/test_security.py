"""Files are data: nothing that is read can run, lead out of its folder, or claim more memory than it has bytes."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hotplate.bench.faults.arena import Arena
from hotplate.train import checkpoint
from hotplate.train.data.dataset import Dataset
from hotplate.train.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for part in ("kernels", "model", "train", "bench") for path in (ROOT / part).rglob("*.py"))
# Modules and calls that run what they read, or write outside of where they are told to.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "jsonpickle"}
CALLS = {
    *("torch.load", "torch.jit.load", "torch.package.PackageImporter", "pandas.read_pickle", "shutil.unpack_archive"),
    *("dist.broadcast_object_list", "dist.all_gather_object", "dist.gather_object", "dist.scatter_object_list"),
    *("eval", "exec", "compile", "__import__"),
}
METHODS = {"extractall", "extract"}  # of archives: members are read in memory, none becomes a path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_load_path_runs_what_it_reads(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.split(".")[0] for name in names} & MODULES, f"{path}:{node.lineno} imports {names}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in CALLS, f"{path}:{node.lineno} calls {called}"
            assert "." not in called or called.rpartition(".")[2] not in METHODS, f"{path}:{node.lineno} calls {called}"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                wrong = (keyword.arg, value) in (("allow_pickle", True), ("weights_only", False), ("shell", True))
                wrong = wrong or (keyword.arg, value) == ("trust_remote_code", True)
                assert not wrong, f"{path}:{node.lineno} passes {keyword.arg}={value}"


@pytest.fixture
def own(arena: Arena, tmp_path: Path) -> Path:
    return Path(shutil.copytree(arena.data, tmp_path / "set"))


NAMES = ["../secret.tokens", "/etc/passwd", "a/b.tokens", "..", ".", "", "a\0b", "x" * 300, "a\nb", "\ud800", 7, None]


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("field", ["file", "tokenizer_file"])
def test_a_data_sets_names_stay_in_its_folder(own: Path, field: str, name: object) -> None:
    path = own / "dataset.json"
    content = json.loads(path.read_text())
    if field == "file":
        content["splits"]["train"][0]["file"] = name
    else:
        content["tokenizer_file"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="must be a plain name|must be a text"):
        Dataset.open(own)


def test_a_symbolic_link_is_no_shard(own: Path, tmp_path: Path) -> None:
    shard = own / json.loads((own / "dataset.json").read_text())["splits"]["train"][0]["file"]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a symbolic link"):
        Dataset.open(own)


def test_numbers_of_a_data_set_are_counts(own: Path) -> None:
    path = own / "dataset.json"
    whole = json.loads(path.read_text())
    for value in (-1, 1.5, "7", None, True, 1 << 70, [1]):
        content = json.loads(json.dumps(whole))
        content["splits"]["train"][0]["bytes"] = value
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="must be a count"):
            Dataset.open(own, "header")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    import torch

    path = tmp_path / "checkpoints" / "step-00000003"
    path.parent.mkdir()
    checkpoint.write(path, {"model": {"w": torch.ones(3)}, "optimizer": {}, "state": {}}, {"step": 3})
    return path


def test_a_checkpoints_names_stay_in_its_folder(saved: Path) -> None:
    manifest = saved / checkpoint.MANIFEST
    whole = json.loads(manifest.read_text())
    fact = whole["files"]["model-00000.safetensors"]
    for name in ("../../model-00000.safetensors", "/etc/passwd", "sub/model-00000.safetensors"):
        manifest.write_text(json.dumps({**whole, "files": {**whole["files"], name: fact}}))
        with pytest.raises(InputError):
            checkpoint.load(saved)


def test_a_huge_header_is_refused_before_memory_is_claimed(saved: Path) -> None:
    from hotplate.train.tensor_files import Reader

    file = saved / "model-00000.safetensors"
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="header would have"):
        Reader(file)
    with pytest.raises(InputError, match=r"model-00000\.safetensors"):
        checkpoint.load(saved)


def test_what_is_installed_fits_together_and_is_pinned() -> None:
    """No vulnerability database can be asked here without a network: what can be held is that the tested versions are
    the pinned ones, every one of them, and that their requirements are met."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line.strip()) for line in lines if line.strip()]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=False) if not pin]
    for pin in pins:
        assert pin is not None
        try:
            found = importlib.metadata.version(pin[1])
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        assert found.split("+")[0] == pin[2].split("+")[0], f"{pin[1]} {found} is installed, {pin[2]} is pinned"
