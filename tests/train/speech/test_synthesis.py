"""Text to speech and the sets built from it. Without flite the waveforms are not covered, the choice of texts is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hotplate.train.errors import InputError
from hotplate.train.speech import synthesis, voices
from hotplate.train.speech.synthesis import SynthesisConfig, synthesise
from hotplate.train.speech.texts import passages, sentences
from hotplate.train.speech.voices import Word, estimate_words, probe, speak, split_words

TEXT = (
    "The old farmer went to the market. He bought a brown horse and a cart. It rained all day on the green hills. "
    "The children ran home to their mother! She gave them warm bread with honey. Who would have thought of it? "
    "My brother sails a small boat. The wind was strong that night. They reached the island by the morning. "
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(
            TEXT.replace("old", f"{'very ' * (number % 5)}old").replace("day", "d" * (1 + number))
        )
    return folder


@pytest.fixture
def silent_voices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What would be spoken, by whom, in the order of the files."""
    spoken: list[tuple[str, str]] = []

    def note(each, out: Path) -> None:
        spoken.append((each.text, each.voice))
        (out / f"{each.name}.json").write_text("{}")
        (out / f"{each.name}.wav").touch()

    monkeypatch.setattr(synthesis, "_make", note)
    monkeypatch.setattr(synthesis, "available", lambda voices: voices)
    return spoken


def test_sentences_are_speakable() -> None:
    assert sentences("He paid $5. The cat sat here. No! A  cat\nand a dog ran, too.", (3, 8)) == [
        "The cat sat here.",
        "A cat and a dog ran, too.",
    ]
    assert split_words("A cat\tran.") == ["A", " cat", "\tran."] and "".join(split_words(TEXT)) == TEXT.rstrip()


def test_tests_and_training_share_no_sentence(texts: Path) -> None:
    train, test = ({s for _, p in passages(str(texts), 1, (3, 20), part) for s in p} for part in (False, True))
    assert train and test and not train & test


@pytest.mark.parametrize("kind", ["stories", "swag", "topic", "order"])
def test_the_same_seed_makes_the_same_set(kind, texts: Path, tmp_path: Path, silent_voices) -> None:
    def made(name: str, seed: int) -> tuple[list[tuple[str, str]], set[str]]:
        silent_voices.clear()
        config = SynthesisConfig(kind=kind, count=6, seed=seed, voices=("flite:slt", "flite:rms"), workers=1)
        synthesise(str(texts), tmp_path / name, config)
        return list(silent_voices), {path.name for path in (tmp_path / name).iterdir()}

    assert made("a", 0) == made("b", 0)
    assert made("c", 1)[0] != made("b2", 0)[0]
    assert made("a", 0)[0] == []  # nothing is left to make


def test_pairs_differ_as_their_kind_says(texts: Path, tmp_path: Path, silent_voices) -> None:
    config = {"count": 5, "voices": ("flite:slt",), "workers": 1}
    synthesise(str(texts), tmp_path / "order", SynthesisConfig(kind="order", length=1, **config))
    for (right, _), (wrong, _) in zip(silent_voices[::2], silent_voices[1::2], strict=True):
        assert right != wrong and sorted(right[:-1].split()) == sorted(wrong[:-1].split())
    silent_voices.clear()
    synthesise(str(texts), tmp_path / "swag", SynthesisConfig(kind="swag", **config))
    rows = [json.loads(line) for line in (tmp_path / "swag" / "preferences.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and all(
        row["auto_bleu2"] < 0.3 and row["chosen_text"] != row["rejected_text"] for row in rows
    )
    assert all((tmp_path / "swag" / row[f"{part}_path"]).exists() for row in rows for part in ("prompt", "chosen"))
    repetitive = tmp_path / "r.txt"
    repetitive.write_text("We go and we go and we go. We go and we go and we go. " * 20)
    with pytest.raises(InputError, match="one document only|want 5"):
        synthesise(str(repetitive), tmp_path / "r", SynthesisConfig(kind="swag", **config))


def test_estimated_words_lie_in_the_sound() -> None:
    wave = np.concatenate([np.zeros(1600), np.ones(16_000), np.zeros(3200)]).astype(np.float32)
    words = estimate_words("A longer word", wave)
    assert words[0].start == pytest.approx(0.1) and words[-1].end == pytest.approx(1.1)
    assert all(a.end == b.start for a, b in zip(words, words[1:], strict=False))
    assert words[1].end - words[1].start > words[0].end - words[0].start


def test_voices_that_are_not_here_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(InputError, match="apt-get install flite"):
        speak("Hello.", "flite:slt")
    with pytest.raises(InputError, match="apt-get install espeak-ng"):
        speak("Hello.", "espeak:fr")
    monkeypatch.setattr(voices, "probe", lambda voice: None if voice == "hibari" else f"no {voice}")
    assert voices.available(()) == ("hibari",)
    with pytest.raises(InputError, match="no flite:slt"):
        voices.available(("hibari", "flite:slt"))
    monkeypatch.setattr(voices, "probe", lambda voice: f"no {voice}")
    with pytest.raises(InputError, match="no flite:slt.*no hibari"):
        voices.available(())


def test_unknown_voices_are_named() -> None:
    assert "no such engine" in (probe("siri") or "") and "flite has" in (probe("flite:none") or "")
    assert "pip install" in (probe("piper:nobody") or "")


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_flite_speaks_and_times_its_words(texts: Path, tmp_path: Path, run) -> None:
    """Also the triplets: from text to the units that preference optimisation reads."""
    spoken = speak("The old farmer, who was tired, went home.", "flite:slt")
    assert (
        spoken.times == "aligned"
        and "".join(w.word for w in spoken.words) == "The old farmer, who was tired, went home."
    )
    assert isinstance(spoken.words[0], Word) and spoken.words[0].start > 0.1
    assert spoken.words[-1].end < len(spoken.wave) / 16_000
    assert all(
        a.end <= b.start + 1e-9 and a.start < a.end for a, b in zip(spoken.words, spoken.words[1:], strict=False)
    )
    flags = ["--kind", "swag", "--count", 2, "--voices", "flite:kal16", "flite:slt"]
    run("synthesise", texts, "-o", tmp_path / "swag", *flags)
    run("preferences", tmp_path / "swag", "-o", tmp_path / "units.jsonl")
    head, *rows = [json.loads(line) for line in (tmp_path / "units.jsonl").read_text().splitlines()]
    assert head["units"] == 100 and len(rows) == 2
    for row in rows:
        for part in ("prompt", "chosen", "rejected"):
            assert len(row[part]["units"]) == len(row[part]["durations"]) > 5
