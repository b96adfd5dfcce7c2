"""What a model says: a real recogniser on a real synthesiser, continuations, judging, models side by side."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from speech_waves import RATE, babble
from tiny import TINY

from hotplate.train.commands.train import main as train
from hotplate.train.data.pairs import read_pairs
from hotplate.train.data.units import UnitTokenizer
from hotplate.train.errors import InputError
from hotplate.train.speech.audio import write_audio
from hotplate.train.speech.encoder import open_encoder
from hotplate.train.speech.judge import text_losses
from hotplate.train.speech.recognise import open_recogniser
from hotplate.train.speech.tales import TOPICS, tales
from hotplate.train.speech.texts import passages
from hotplate.train.speech.voices import speak


@pytest.fixture(scope="module")
def trained(unit_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("said") / "r"
    flags = [f"--data.source={unit_set}", f"--run.folder={folder}", "--budget=4steps", "--model.vocab=102"]
    assert train([*TINY, *flags, "--data.window=64"]) == 0
    return folder


def test_a_synthesised_sentence_is_understood() -> None:
    spoken = speak("The captain of the ship was a good man.", "hibari")
    heard = open_recogniser("pocketsphinx").transcribe(spoken.wave).split()
    assert len({"the", "captain", "of", "ship", "was", "a", "good", "man"} & set(heard)) >= 6
    assert open_recogniser("pocketsphinx").transcribe(np.zeros(0, np.float32)) == ""


def test_any_program_can_recognise(tmp_path: Path) -> None:
    program = tmp_path / "hear.py"
    program.write_text("import sys, wave; print('heard', wave.open(sys.argv[1]).getnframes())")
    assert open_recogniser(f"command:{sys.executable} {program}").transcribe(babble(0.5)) == "heard 8000"
    with pytest.raises(InputError, match="recogniser"):
        open_recogniser(f"command:{sys.executable} {tmp_path / 'missing.py'}").transcribe(babble(0.5))
    with pytest.raises(InputError, match="want pocketsphinx, or command"):
        open_recogniser("whisper")


def test_transcripts_are_judged_by_a_model_of_text(prepared: Path, train_tiny, tmp_path: Path, run) -> None:
    """GenPPL is the exponential of the mean of means; what was not understood counts for neither measure."""
    model = tmp_path / "text"
    assert train_tiny("--budget=2steps", f"--run.folder={model}", "--evaluation.every=0") == 0
    texts = ["the cat and the cat", "a dog"]
    program = tmp_path / "hear.py"
    program.write_text(
        f"import sys, pathlib; print({[*texts, '']}[int(pathlib.Path(sys.argv[1]).stat().st_size > 20000) + "
        "int(pathlib.Path(sys.argv[1]).stat().st_size > 40000)])"
    )
    for number, seconds in enumerate((0.5, 1.0, 2.0)):
        write_audio(tmp_path / "wav" / f"{number}.wav", babble(seconds), RATE)
    (tmp_path / "wav" / "3.wav").write_bytes(b"RIFF")
    flags = ["--language-model", model, "--recogniser", f"command:{sys.executable} {program}"]
    output, errors = run("judge", tmp_path / "wav", *flags, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert "left out" in errors and found["files"] == 2 and found["nothing_understood"] == ["2.wav"]
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(text_losses(model, texts))))
    assert found["auto_bleu2"] == pytest.approx(0.25) and "perplexity" in output
    with pytest.raises(InputError, match="without tokens"):
        text_losses(model, [""])


def test_prompts_are_continued_in_sound(trained: Path, recordings: Path, tmp_path: Path, run) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    write_audio(tmp_path / "in" / "good.wav", babble(1.5), RATE)
    flags = ["--seconds", "0.5", "--tokens", "9"]
    _, errors = run("continue", trained, tmp_path / "in", "-o", tmp_path / "out", *flags)
    assert "left out" in errors and "bad.wav" in errors
    facts = json.loads((tmp_path / "out" / "good.json").read_text())
    heard = open_encoder().encode_one(babble(1.5)[: RATE // 2])
    assert facts["prompt"] == heard.units.tolist() and len(facts["continuation"]) <= 9
    frames = sum(facts["durations"])
    assert (tmp_path / "out" / "good.wav").stat().st_size == pytest.approx(44 + 2 * 640 * frames, abs=2000)
    first = (tmp_path / "out" / "good.wav").read_bytes()
    run("continue", trained, tmp_path / "in", "-o", tmp_path / "again", *flags)
    assert (tmp_path / "again" / "good.wav").read_bytes() == first


def test_triplets_become_units_and_a_bad_file_costs_its_own(trained: Path, tmp_path: Path, run) -> None:
    folder = tmp_path / "swag"
    rows = [{f"{part}_path": f"{n}-{part}.wav" for part in ("prompt", "chosen", "rejected")} for n in range(4)]
    for n, row in enumerate(rows):
        for k, name in enumerate(row.values()):
            write_audio(folder / name, babble(0.5 + 0.1 * k, 3 * n + k), RATE)
    write_audio(folder / "1-chosen.wav", np.zeros(RATE, np.float32), RATE)
    (folder / "2-rejected.wav").unlink()
    (folder / "preferences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output, errors = run("preferences", folder, "-o", tmp_path / "units.jsonl")
    assert "2 triplets" in output and "silent" in errors and "line 3" in errors
    encoder = open_encoder()
    tokenizer = UnitTokenizer(tmp_path, encoder.description)
    pairs = read_pairs(tmp_path / "units.jsonl", tokenizer)
    assert len(pairs) == 2
    assert pairs[0].chosen.tolist() == (encoder.encode_one(babble(0.6, 1)).units.astype(int) + 2).tolist()
    other = UnitTokenizer(tmp_path, open_encoder(collapse=False).description)
    with pytest.raises(InputError, match="encode both with one backend"):
        read_pairs(tmp_path / "units.jsonl", other)
    for n in range(4):
        write_audio(tmp_path / "pairs" / f"{n}_x.wav", babble(0.5, n), RATE)
    flags = ["--pairs", f"p={tmp_path / 'pairs'}", "--triplets", tmp_path / "units.jsonl", "--base", "two"]
    flags += ["--json", tmp_path / "r.json", "--plot", tmp_path / "r.png"]
    run("compare", f"one={trained}", f"two={trained}", *flags)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["base"] == "two" and (tmp_path / "r.png").stat().st_size > 5000
    assert found["runs"]["one"]["pairs"]["p"]["all"]["pairs"] == 2
    assert found["runs"]["one"]["triplets"]["gain"] == 0 and found["runs"]["one"]["triplets"]["pairs"] == 2
    _, errors = run("compare", trained, expect=2)
    assert "want NAME=PATH" in errors


def test_template_stories_never_repeat_a_sentence() -> None:
    found = dict(tales())
    assert set(found) == set(TOPICS)
    sentences = [s for text in found.values() for s in text.split(". ")]
    assert len(sentences) == len(set(sentences)) == 1200 * len(TOPICS)
    training, held_out = ({s for _, p in passages("tales", 1, (4, 16), test) for s in p} for test in (False, True))
    assert not training & held_out and len(training) + len(held_out) == 9600
