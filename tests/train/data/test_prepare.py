import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from hotplate.train.data.dataset import Dataset
from hotplate.train.data.documents import FolderSource, Skipped
from hotplate.train.data.prepare import PrepareConfig, Survey, assign_splits, built_in, open_data, prepare
from hotplate.train.errors import InputError

COUNT = 40


@pytest.fixture(scope="module")
def texts(words):
    return [words(300 + 20 * number, number) for number in range(COUNT)]


@pytest.fixture
def folder(tmp_path, texts):
    """A source of text files, one of them empty, with a file of another kind and a hidden one."""
    source = tmp_path / "text"
    (source / "sub").mkdir(parents=True)
    for number, text in enumerate(texts):
        (source / ("sub" if number % 3 == 0 else ".") / f"{number:02d}.txt").write_text(text, newline="")
    (source / "empty.md").write_text(" \n")
    (source / "image.png").write_bytes(b"\xff")
    (source / ".hidden.txt").write_text("hidden")
    return source


def _config(source, tmp_path, tokenizer=None, **options):
    given = None if tokenizer is None else str(tokenizer.path)
    options = {"vocab": 2048, "workers": 1} | options
    return PrepareConfig(source=str(source), out=str(tmp_path / "out"), tokenizer=given, **options)


def _texts(dataset):
    return {
        name: [dataset.tokenizer.decode(split.read(number)[1]) for number in range(split.documents)]
        for name in dataset.splits
        for split in [dataset.split(name)]
    }


def test_folder_of_text_files(folder, tmp_path, texts):
    dataset = prepare(_config(folder, tmp_path))
    assert dataset.vocab == 2048
    found = _texts(dataset)
    assert sorted(sum(found.values(), [])) == sorted(texts)
    sizes = {name: sum(len(text.encode()) for text in found[name]) for name in found}
    assert {name: dataset.split(name).bytes for name in found} == sizes
    assert list(found) == ["train", "validation", "test"]
    total = sum(sizes.values())
    assert 0.02 * total < sizes["test"] < 0.09 * total and 0.02 * total < sizes["validation"] < 0.09 * total
    assert dataset.manifest.source["skipped"] == {"empty": 1, "invalid": 0, "examples": []}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out", "text"]
    assert Dataset.open(tmp_path / "out", "full").fingerprint == dataset.fingerprint


def test_two_processes_write_what_one_does(folder, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("hotplate.train.data.prepare.WORKER_BYTES", 1)
    monkeypatch.setattr("hotplate.train.data.processes.GROUP_BYTES", 10_000)
    options = {"shard_tokens": 5000}
    one = prepare(_config(folder, tmp_path, tokenizer, **options))
    config = PrepareConfig(
        source=str(folder), out=str(tmp_path / "two"), tokenizer=str(tokenizer.path), workers=2, **options
    )
    two = prepare(config)
    assert one.fingerprint == two.fingerprint
    assert len(two.split("train").shards) > 3
    assert [s.path.name for s in two.split("train").shards][:2] == [
        "train-00000.tokens",
        "train-00001.tokens",
    ]


def test_seed_chooses_the_splits(folder, tmp_path, tokenizer):
    splits = []
    for number, seed in enumerate((0, 0, 1)):
        config = PrepareConfig(
            source=str(folder),
            out=str(tmp_path / str(number)),
            tokenizer=str(tokenizer.path),
            seed=seed,
            workers=1,
        )
        splits.append(_texts(prepare(config)))
    assert splits[0] == splits[1] and splits[0]["test"] != splits[2]["test"]


def test_tokenizer_is_trained_on_the_training_split_alone(folder, tmp_path, words):
    before = prepare(_config(folder, tmp_path))
    held_out = set(_texts(before)["test"])
    for path in folder.rglob("*.txt"):
        if path.name != ".hidden.txt" and path.read_bytes().decode() in held_out:
            path.write_text("Q" * len(path.read_bytes()))
    config = PrepareConfig(source=str(folder), out=str(tmp_path / "again"), vocab=2048, workers=1)
    assert prepare(config).tokenizer.fingerprint == before.tokenizer.fingerprint


def _write_records(path, records):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(zstandard.compress(lines) if path.suffix == ".zst" else lines)


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.zst", "d.parquet"])
def test_records(tmp_path, tokenizer, texts, name):
    path = tmp_path / name
    _write_records(path, [{"id": n, "body": text} for n, text in enumerate([*texts, ""])])
    dataset = prepare(_config(path, tmp_path, tokenizer, text_field="body"))
    assert sorted(sum(_texts(dataset).values(), [])) == sorted(texts)
    assert dataset.manifest.source["skipped"]["empty"] == 1
    with pytest.raises(
        InputError, match=rf"{name}.*no (text in field|column) 'text'; choose --text-field from id, body"
    ):
        list(FolderSource(path).read(Skipped()))


def test_separator_divides_a_file(tmp_path, tokenizer, texts):
    (tmp_path / "all.txt").write_text("\n---\n".join(texts), newline="")
    with pytest.raises(InputError, match="1 documents are too few for the splits test, train, validation.*--separator"):
        prepare(_config(tmp_path / "all.txt", tmp_path, tokenizer))
    dataset = prepare(_config(tmp_path / "all.txt", tmp_path, tokenizer, separator="\n---\n"))
    assert sorted(sum(_texts(dataset).values(), [])) == sorted(texts)


def test_one_document_can_be_all_training_data(tmp_path, tokenizer, texts):
    (tmp_path / "all.txt").write_text(texts[0], newline="")
    dataset = prepare(_config(tmp_path / "all.txt", tmp_path, tokenizer, validation=0, test=0))
    assert dataset.splits == ("train",) and dataset.split("train").documents == 1


BAD_FILES = {
    "bytes.txt": (b"fine \xff not", r"bytes\.txt: invalid UTF-8 at byte 5"),
    "bytes.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', r"bytes\.jsonl, line 2: invalid UTF-8 at byte 10"),
    "json.jsonl": (b'{"text": "a"}\n\n{"text": \n', r"json\.jsonl, line 3: invalid JSON: .* at column \d+"),
    "list.jsonl": (b'["text"]\n', r"list\.jsonl, line 1: no text in field 'text'; .* from list"),
    "number.jsonl": (b'{"text": 3}\n', r"number\.jsonl, line 1: no text in field 'text'"),
    "surrogate.jsonl": (
        b'{"text": "\\ud800"}\n',
        r"surrogate\.jsonl, line 1: the text holds a lone surrogate",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_text_names_file_and_place_or_is_skipped(folder, tmp_path, tokenizer, texts, name):
    content, message = BAD_FILES[name]
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message + r".*--on-error skip"):
        prepare(_config(folder, tmp_path, tokenizer))
    assert not (tmp_path / "out").exists()
    dataset = prepare(_config(folder, tmp_path, tokenizer, on_error="skip"))
    skipped = dataset.manifest.source["skipped"]
    assert skipped["invalid"] == 1 and re.search(message, skipped["examples"][0])
    assert set(texts) <= set(sum(_texts(dataset).values(), []))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("x.jsonl.zst", b"garbage", "damaged zstd stream"), ("x.parquet", b"garbage", "damaged parquet file")],
)
def test_damaged_containers(tmp_path, tokenizer, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        prepare(_config(tmp_path / name, tmp_path, tokenizer))


def test_truncated_zstd(tmp_path, tokenizer, texts):
    whole = zstandard.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    (tmp_path / "x.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"x\.jsonl\.zst: truncated: the zstd stream ends inside a frame"):
        list(FolderSource(tmp_path / "x.jsonl.zst", on_error="skip").read(Skipped()))


def test_zstd_frames_follow_each_other(tmp_path, texts):
    lines = [zstandard.compress(json.dumps({"text": text}).encode() + b"\n") for text in texts]
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(lines))
    assert [document.text for document in FolderSource(tmp_path / "x.jsonl.zst").read(Skipped())] == texts


def test_sources_without_text(tmp_path, tokenizer):
    with pytest.raises(InputError, match="nowhere: no such file or folder, nor a built-in corpus"):
        prepare(_config(tmp_path / "nowhere", tmp_path, tokenizer))
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(InputError, match=r"source: no \.txt, .*\.parquet files there"):
        prepare(_config(source, tmp_path, tokenizer))
    (source / "a.txt").write_text("")
    (source / "b.txt").write_text(" \n")
    with pytest.raises(InputError, match="no text in it: 2 empty and 0 invalid documents"):
        prepare(_config(source, tmp_path, tokenizer))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": -0.1}, "--validation -0.1"),
        ({"validation": 0.5, "test": 0.5}, "sum to below 1"),
        ({"shard_tokens": 0}, "--shard-tokens 0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        _config(tmp_path, tmp_path, **options)


def test_existing_folder_is_left_alone(folder, tmp_path, tokenizer):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"out exists already; remove it or choose another --out"):
        prepare(_config(folder, tmp_path, tokenizer))
    assert not list((tmp_path / "out").iterdir())


def test_splits_hold_their_share_and_at_least_one_document():
    rng = np.random.default_rng(0)
    for count in (3, 10, 1000):
        survey = Survey([rng.bytes(8) for _ in range(count)], [10] * count, Skipped(), [""] * count)
        names = assign_splits(survey, 0.05, 0.1)
        assert names.count("test") == max(1, count // 10) and names.count("validation") == max(1, count // 20)


KILLED = """
import os, signal, sys
from hotplate.train.data import encoding, prepare, processes

def die(self, document):
    add(self, document)
    if self._writer.documents == 5:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    add, encoding.SplitWriter.add = encoding.SplitWriter.add, die
    prepare.WORKER_BYTES, processes.GROUP_BYTES = 1, 1000
    source, out, tokenizer = sys.argv[1:]
    prepare.prepare(prepare.PrepareConfig(source=source, out=out, tokenizer=tokenizer, workers=2))
"""


def test_killed_preparation_leaves_no_dataset_and_no_process(folder, tmp_path, tokenizer):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [
        sys.executable,
        str(tmp_path / "killed.py"),
        str(folder),
        str(tmp_path / "out"),
        str(tokenizer.path),
    ]
    process = subprocess.Popen(command, start_new_session=True)
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / ".out.partial").glob(".train-00000.tokens.*"))
    deadline = time.monotonic() + 30
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_lives(process.pid)
    prepare(_config(folder, tmp_path, tokenizer))
    assert not (tmp_path / ".out.partial").exists()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_failure_leaves_nothing(folder, tmp_path, tokenizer, monkeypatch):
    def fail(self, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("hotplate.train.data.encoding.Manifest.write", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(_config(folder, tmp_path, tokenizer))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "text"]


def test_source_that_changes_meanwhile(folder, tmp_path, tokenizer, monkeypatch):
    original = FolderSource.read
    passes = []

    def read(self, skipped):
        passes.append(1)
        for document in original(self, skipped):
            yield document if len(passes) == 1 else document._replace(identifier="renamed")

    monkeypatch.setattr(FolderSource, "read", read)
    with pytest.raises(InputError, match="renamed: the source changed while it was being prepared"):
        prepare(_config(folder, tmp_path, tokenizer))


def test_open_data(folder, tmp_path, tokenizer, sotu, monkeypatch):
    monkeypatch.setenv("HOTPLATE_CACHE", str(sotu.folder.parents[1]))
    assert open_data("sotu", 2048).fingerprint == sotu.fingerprint
    out = prepare(_config(folder, tmp_path, tokenizer))
    assert open_data(str(tmp_path / "out")).fingerprint == out.fingerprint
    with pytest.raises(InputError, match=r"no dataset 'soto': neither a built-in corpus \(sotu, python-stdlib\) nor"):
        open_data("soto")
    command = f"hotplate data prepare --source {folder} --out {tmp_path}/text-prepared"
    with pytest.raises(InputError, match=f"holds text, not a prepared dataset; first run: {re.escape(command)}$"):
        open_data(str(folder))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="nothing: no dataset.json there, and no .txt"):
        open_data(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="no built-in corpus 'x'; there are sotu, python-stdlib"):
        built_in("x")
