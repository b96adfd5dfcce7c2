"""Small corpora, tokenizers and splits made on the spot."""

from pathlib import Path

import numpy as np
import pytest

from hotplate.train.data.dataset import Split
from hotplate.train.data.prepare import built_in
from hotplate.train.data.shards import write_shard
from hotplate.train.data.tokenizer import train_tokenizer

REPOSITORY = Path(__file__).parents[3]


def _words(count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    letters = rng.choice(list("etaoinshrdlu"), (4000, 7))
    vocabulary = ["".join(row[: 2 + i % 6]) for i, row in enumerate(letters)]
    chosen = rng.zipf(1.3, count) % len(vocabulary)
    return " ".join(vocabulary[i] + (".\n" if n % 17 == 0 else "") for n, i in enumerate(chosen))


@pytest.fixture(scope="session")
def words():
    """A function (count, seed) -> text of that many invented words."""
    return _words


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A SentencePiece tokenizer of 2,048 ids."""
    texts = [_words(4000, seed) for seed in range(4)]
    return train_tokenizer(texts, 2048, tmp_path_factory.mktemp("tokenizer") / "small.model")


@pytest.fixture
def make_split(tmp_path):
    """A function (documents, shards=1, vocab=100, eod=0) -> Split of arrays of ids."""

    def make(documents, shards: int = 1, vocab: int = 100, eod: int = 0) -> Split:
        opened = []
        for number, part in enumerate(np.array_split(np.arange(len(documents)), shards)):
            path = tmp_path / f"made-{number:05d}.tokens"
            chosen = [np.asarray(documents[i]) for i in part]
            opened.append(write_shard(path, chosen, vocab=vocab, eod=eod, tokenizer_sha256="0" * 64))
        return Split("train", opened, 0, 0)

    return make


@pytest.fixture
def random_split(make_split):
    """A function (lengths, ...) -> Split whose documents have these many random tokens."""

    def make(lengths, **options) -> Split:
        rng = np.random.default_rng(0)
        return make_split([rng.integers(1, 100, length) for length in lengths], **options)

    return make


@pytest.fixture(scope="session")
def sotu():
    """The built-in corpus at 2,048 ids, cached under build/ between runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTPLATE_CACHE", str(REPOSITORY / "build" / "test-cache"))
        return built_in("sotu", 2048)
