"""Damaged files into every parser of ours: a thousand each. `hotplate fuzz` does hundreds of thousands."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.bench.fuzz.loop import fuzz
from hotplate.bench.fuzz.mutations import mutated
from hotplate.bench.fuzz.target import Target
from hotplate.bench.fuzz.targets import targets
from hotplate.train.errors import InputError
from hotplate.train.untrusted import parse_json, read_object


@pytest.fixture(scope="module")
def known():
    with targets() as made:
        yield made


NAMES = [
    *("shard", "shard header", "data set manifest", "data set", "file list", "units description", "config"),
    *("checkpoint manifest.json", "checkpoint trainer.json", "checkpoint model-00000.safetensors", "tensor file"),
    *("metrics", "sign of life", "documents", "tokeniser", "llm.c tokens", "Languini file list", "preference pairs"),
    *("word times", "triplets", "codebook", "HuBERT's config", "vocoder's config", "wav"),
    *("units shard", "text and units", "aligned documents", "sweep's plan", "growth study's plan"),
    *("points, TOML", "points, JSON", "bench result", "bench result in a report", "profile", "kept timings"),
    *("summary of a run", "Hugging Face config", "DeepSpeed override"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_accepts_or_refuses(known: dict[str, Target], name: str) -> None:
    found = fuzz(known[name], 1000, seed=3)
    assert found.clean, found.defects
    assert found.inputs == 1000


def test_every_parser_is_in_the_list(known: dict[str, Target]) -> None:
    assert set(NAMES) == set(known)


def test_a_crash_and_a_hang_are_found(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"

    def crash() -> None:
        if b"\0" in path.read_bytes():
            raise KeyError("boom")

    found = fuzz(Target("crash", path, [b"text to damage"], crash), 500, seed=1)
    assert not found.clean and "KeyError" in next(iter(found.defects))

    def hang() -> None:
        while path.read_bytes() != b"seed":
            pass

    monkeypatch.setattr("hotplate.bench.fuzz.loop.HANG_SECONDS", 1)
    found = fuzz(Target("hang", path, [b"seed"], hang), 1, seed=1)
    assert "Hang" in next(iter(found.defects))


def test_mutations_repeat_with_their_seed_and_differ() -> None:
    one, two = (
        [mutated(b'{"a": [1, 2]}', drawn) for _ in range(200)] for drawn in (random.Random(1), random.Random(1))
    )
    assert one == two and len(set(one)) > 150


@given(
    st.recursive(
        st.none() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
@settings(max_examples=200, deadline=None)
def test_json_of_any_shape_is_a_value_or_a_value_error(tmp_path_factory, value) -> None:

    text = json.dumps(value)
    assert json.dumps(parse_json(text)) == text


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "{", "\ufeff{}"])
def test_json_that_hurts_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[]", "want a JSON object, got list"), (b"\xff", "not JSON"), (b" " * 200, "more than 100 bytes")],
)
def test_objects_from_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_object(path, "a thing", "make it again", most=100)
    with pytest.raises(InputError, match="cannot read a thing"):
        read_object(tmp_path / "nowhere", "a thing", "make it again")
