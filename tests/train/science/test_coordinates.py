"""The coordinate check: flat over widths under muP, growing without, for both optimisers and all kinds of mixers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hotplate.model.presets import PRESETS
from hotplate.train.commands import coordinates, guarded
from hotplate.train.config import OptimizerConfig
from hotplate.train.science.coordinates import at_width, check

WIDTHS = (64, 128, 256)
FLAT, GROWING = 0.3, 0.35  # exponents measured: within 0.25 of zero, and from 0.45 up


@pytest.mark.parametrize(
    ("preset", "optimizer"),
    [
        ("gpt-nano", OptimizerConfig(lr=1e-2)),
        ("qlstm-nano", OptimizerConfig(lr=1e-2)),
        ("decoder-nano", OptimizerConfig(kind="muon", lr=2e-2)),
        ("lstm-nano", OptimizerConfig(kind="muon", lr=2e-2)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_movement_is_flat_under_mup_and_grows_without(preset: str, optimizer: OptimizerConfig) -> None:
    model = replace(PRESETS[preset], layers=2, vocab=256)
    mup = check(model, optimizer, WIDTHS, base=64, steps=3, seeds=1)
    standard = check(model, optimizer, WIDTHS, base=None, steps=3, seeds=1)
    for layer in mup.moved:
        assert abs(mup.exponent(layer)) < FLAT, layer
        tied_embedding = layer == "embedding" and model.embedding_scale is not None  # no sqrt(width) to grow with
        assert standard.exponent(layer) > GROWING or tied_embedding, layer


def test_the_command_shows_both_and_writes_numbers(tmp_path: Path, capsys) -> None:
    path = tmp_path / "c.json"
    assert (
        coordinates.main(["gpt-nano", "--widths", "32", "64", "--steps", "1", "--seeds", "1", "--json", str(path)]) == 0
    )
    assert "exponent" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert set(record) == {"standard parametrisation", "muP"} and record["muP"]["widths"] == [32, 64]


def test_widths_scale_heads_and_mlp(capsys) -> None:
    made = at_width(PRESETS["decoder-nano"], 256, base=128)
    assert (made.mixer.heads, made.mixer.kv_heads, made.mixer.head_width, made.ffn) == (8, 4, 32, 768)
    for flags, message in (
        (["--widths", "100", "200"], "keeps heads (4) and ffn (512) whole"),
        (["--widths", "64"], "two or more"),
        (["--steps", "0"], "steps and seeds >= 1"),
    ):
        assert guarded(coordinates.main, ["gpt-nano", *flags]) == 2
        assert message in capsys.readouterr().err
