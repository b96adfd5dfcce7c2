import json
import math
import shutil

import numpy as np
import pytest

from hotplate.train.data.dataset import Dataset, unigram_nats
from hotplate.train.data.encoding import Encoded, write_dataset
from hotplate.train.data.shards import Shard, write_shard
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.errors import InputError

TEXTS = ["one two three", "four\n", "five six seven eight nine ten", "e", "t t t t t", "last one"]


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A dataset whose training split has several shards."""
    path = tmp_path / "set"
    path.mkdir()
    shutil.copyfile(tokenizer.path, path / "tokenizer.model")
    copy = Tokenizer.load(path / "tokenizer.model")
    encoded = [Encoded(copy.encode(text), len(text.encode()), len(text)) for text in TEXTS]
    names = ["train"] * 4 + ["validation", "test"]
    write_dataset(path, zip(names, encoded, strict=True), copy, 12, {"from": "test"})
    return path


def test_open(folder, tokenizer):
    dataset = Dataset.open(folder)
    assert dataset.splits == ("train", "validation", "test")
    assert (dataset.vocab, dataset.eod) == (2048, 2)
    assert dataset.tokenizer.fingerprint == tokenizer.fingerprint
    train = dataset.split("train")
    assert len(train.shards) > 1 and train.documents == 4
    assert train.bytes == sum(len(text) for text in TEXTS[:4])
    assert train.tokens == train.lengths.sum() and train.starts[-1] == train.tokens
    with pytest.raises(InputError, match=r"no split 'dev'; it has train, validation, test"):
        dataset.split("dev")


def test_read_gives_every_document(folder):
    dataset = Dataset.open(folder)
    train = dataset.split("train")
    for number, text in enumerate(TEXTS[:4]):
        inputs, targets = train.read(number)
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs[0] == targets[-1] == dataset.eod
        assert (inputs[1:] == targets[:-1]).all()
        assert dataset.tokenizer.decode(targets) == text
        part_inputs, part_targets = train.read(number, 1, len(inputs) - 1)
        assert (part_inputs == inputs[1:-1]).all() and (part_targets == targets[1:-1]).all()
    everything = train.gather(np.arange(train.tokens))
    documents = [train.read(number) for number in range(4)]
    for side in (0, 1):
        assert (everything[side] == np.concatenate([document[side] for document in documents])).all()
    assert (train.gather_targets(np.arange(train.tokens)) == everything[1]).all()
    with pytest.raises(ValueError, match="want 0 <= start <= stop <="):
        train.read(0, 0, 10_000)


def test_fingerprint_depends_on_the_tokens(folder, tmp_path):
    before = Dataset.open(folder).fingerprint
    shutil.copytree(folder, tmp_path / "moved")
    assert Dataset.open(tmp_path / "moved").fingerprint == before
    _edit(folder, lambda content: content["splits"].pop("test"))
    assert Dataset.open(folder).fingerprint != before


def test_unigram_nats(make_split, tmp_path):
    train = make_split([[1, 1, 2]], vocab=4)
    test = make_split([[1, 3]], vocab=4)
    train = make_split([[1, 1, 2]], vocab=4)  # targets 1 1 2 0
    (tmp_path / "test").mkdir()
    shard = write_shard(tmp_path / "test" / "t", [np.array([1, 3])], vocab=4, eod=0, tokenizer_sha256="0" * 64)
    test.shards = [shard]  # targets 1 3 0
    want = -(math.log(3 / 8) + math.log(1 / 8) + math.log(2 / 8)) / 3
    assert unigram_nats(train, test) == pytest.approx(want, rel=1e-12)


def _edit(folder, change):
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


FAULTS = {
    "version": (lambda c: c.update(version=9), "version 9, this hotplate reads 1"),
    "missing": (lambda c: c.pop("vocab"), "not a dataset description: .*vocab"),
    "surplus": (lambda c: c.update(colour=1), "not a dataset description: .*colour"),
    "no shards": (lambda c: c["splits"].update(test=[]), "split 'test' lists no shards"),
    "escape": (lambda c: c["splits"]["test"][0].update(file="../x"), "'../x' must be a plain name"),
    "absolute": (lambda c: c.update(tokenizer_file="/etc/passwd"), "'/etc/passwd' must be a plain name"),
    "vocab": (lambda c: c.update(vocab=9), "vocabulary 2048, but .* says 9"),
    "tokens": (lambda c: c["splits"]["test"][0].update(tokens=1), r"tokens \d+, but .* says 1"),
    "documents": (lambda c: c["splits"]["test"][0].update(documents=7), "documents 1, but .* says 7"),
    "hash": (lambda c: c["splits"]["test"][0].update(header_sha256="00"), "header SHA-256 .* says 00"),
    "shard gone": (lambda c: c["splits"]["test"][0].update(file="gone"), "gone: cannot read the shard"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_manifest(folder, fault):
    change, message = FAULTS[fault]
    _edit(folder, change)
    with pytest.raises(InputError, match=message):
        Dataset.open(folder)


def test_not_json_and_missing(folder, tmp_path):
    (folder / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="dataset.json: not JSON"):
        Dataset.open(folder)
    with pytest.raises(InputError, match="dataset.json: cannot read the dataset: No such file"):
        Dataset.open(tmp_path / "nowhere")


def test_changed_tokenizer_prints_every_hash(folder):
    dataset = Dataset.open(folder)
    raw = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(raw + b"\xa2\x06\x00")  # an unknown field: the same model, another hash
    changed = Tokenizer.load(folder / "tokenizer.model").fingerprint
    with pytest.raises(InputError, match="does not belong") as caught:
        Dataset.open(folder)
    assert changed in str(caught.value) and dataset.tokenizer.fingerprint in str(caught.value)


def test_shards_of_another_tokenizer(folder):
    _edit(folder, lambda content: content.update(tokenizer_sha256="11" * 32))
    with pytest.raises(InputError, match="encoded with another tokenizer") as caught:
        Dataset.open(folder)
    assert "11" * 32 in str(caught.value)


def test_id_outside_the_vocabulary_names_shard_and_offset(folder):
    """Header verification trusts the body, so the check that every batch makes is what finds it."""
    train = Dataset.open(folder).split("train")
    path = train.shards[1].path
    raw = bytearray(path.read_bytes())
    raw[192 + 2 * 3 : 192 + 2 * 3 + 2] = (60_000).to_bytes(2, "little")
    path.write_bytes(raw)
    train = Dataset.open(folder, "header").split("train")
    with pytest.raises(InputError, match=rf"{path.name}: id 60000 at offset 3 is outside the vocabulary of 2,048"):
        train.gather(np.arange(train.tokens))
    with pytest.raises(InputError, match=rf"{path.name}: id 60000 at offset 3 "):
        train.gather_targets(np.arange(train.tokens))
    with pytest.raises(InputError, match=rf"{path.name}: damaged body"):
        Dataset.open(folder)
    assert Shard.open(path).header.vocab == 2048
