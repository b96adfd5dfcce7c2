"""Files that data come from: documents, tokenisers, token files of other programs, preference pairs."""

import json
from pathlib import Path

import numpy as np
import tokenizers

from hotplate.bench.fuzz.target import Target
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.documents import FolderSource, Skipped
from hotplate.train.data.importers import LLMC_HEADER_BYTES, file_list, map_llmc
from hotplate.train.data.pairs import read_pairs
from hotplate.train.data.tokenizer import Tokenizer


def corpora(folder: Path, data: Path) -> list[Target]:
    """`data`: a prepared data set, for its tokeniser."""
    place = folder / "corpora"
    place.mkdir()
    documents, pairs, described = place / "some.jsonl", place / "pairs.jsonl", place / "tokenizer.json"
    lines = [json.dumps({"text": f"document {n}", "title": None}) for n in range(3)]
    header = np.zeros(LLMC_HEADER_BYTES // 4, "<i4")
    header[:3] = 20_240_520, 1, 7
    llmc, listed = place / "some.bin", place / "file_list.npy"
    np.save(listed, np.array([["a.npy", "12"], ["b/c.npy", "7"]]))
    tokenizer = Dataset.open(data, "header").tokenizer
    of_text = {"prompt": "one", "chosen": "two", "rejected": "three"}
    of_ids = {"prompt": [], "chosen": [4, 5], "rejected": [6]}
    return [
        Target(
            "documents",
            documents,
            ["\n".join(lines).encode()],
            lambda: list(FolderSource(documents).read(Skipped())),
        ),
        Target("tokeniser", described, [_byte_level()], lambda: Tokenizer.load(described)),
        Target("llm.c tokens", llmc, [header.tobytes() + bytes(14)], lambda: map_llmc(llmc)),
        Target("Languini file list", listed, [listed.read_bytes()], lambda: list(file_list(listed))),
        Target(
            "preference pairs",
            pairs,
            [b"\n".join(json.dumps(pair).encode() for pair in (of_text, of_ids))],
            lambda: read_pairs(pairs, tokenizer),
        ),
    ]


def _byte_level() -> bytes:
    """A tokeniser of the 256 bytes, one merge and a document symbol."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "th"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("t", "h")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made.to_str().encode()
