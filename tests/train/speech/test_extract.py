"""Extraction: what is done is kept, what is bad is reported, and nothing is mixed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speech_waves import RATE, babble

from hotplate.train.errors import InputError
from hotplate.train.speech import extract as extraction
from hotplate.train.speech.audio import read_audio, speech_segments, write_audio
from hotplate.train.speech.encoder import open_encoder
from hotplate.train.speech.extract import ExtractConfig, extract
from hotplate.train.speech.store import UnitFolder


def by_name(folder: Path) -> dict[str, list[int]]:
    return {u.name: u.units.tolist() for u in UnitFolder.open(folder).utterances()}


def test_a_killed_extraction_goes_on(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete shards stay, the rest is made by the next call, and the units are those of one call."""
    encoder = open_encoder()
    config = ExtractConfig(files_per_shard=10)
    groups = []

    def killed(*arguments):
        if len(groups) == 1:
            raise KeyboardInterrupt
        groups.append(whole(*arguments))

    whole = extraction._extract_group
    monkeypatch.setattr(extraction, "_extract_group", killed)
    with pytest.raises(KeyboardInterrupt):
        extract((str(recordings),), tmp_path / "units", encoder, config)
    monkeypatch.undo()
    assert len(by_name(tmp_path / "units")) == 10
    report = extract((str(recordings),), tmp_path / "units", encoder, config)
    assert (report.files, report.skipped) == (14, 10)
    extract((str(recordings),), tmp_path / "again", encoder, ExtractConfig(batch_seconds=4))
    assert by_name(tmp_path / "units") == by_name(tmp_path / "again")
    assert not list(tmp_path.rglob("*.partial"))


def test_parts_make_the_whole(recordings: Path, tmp_path: Path) -> None:
    """Machines that encode parts I/N into one folder share the files among them."""
    encoder = open_encoder()
    counts = [
        extract((str(recordings),), tmp_path / "units", encoder, ExtractConfig(shard=f"{index}/3")).files
        for index in range(3)
    ]
    assert sum(counts) == 24 and min(counts) > 0 and len(by_name(tmp_path / "units")) == 24
    with pytest.raises(ValueError, match="I/N"):
        ExtractConfig(shard="3/3")


def test_bad_files_are_reported_and_the_rest_is_kept(recordings: Path, tmp_path: Path, run) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    write_audio(folder / "good.wav", babble(1), RATE)
    write_audio(folder / "rate.wav", babble(1, rate=8000), 8000)
    write_audio(folder / "silent.wav", np.zeros(RATE), RATE)
    write_audio(folder / "short.wav", babble(1)[:600], RATE)
    write_audio(folder / "long.wav", np.tile(babble(4), 8), RATE)
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (folder / "corrupt.flac").write_bytes(b"fLaC" + bytes(100))
    (folder / "empty.wav").touch()
    output, errors = run("encode", folder, "-o", tmp_path / "units")
    assert by_name(tmp_path / "units").keys() == {"good.wav"} and "7 failed" in output
    reasons = {"rate": "--resample", "silent": "silent", "short": "shorter than one frame", "long": "--vad"}
    for name, reason in {**reasons, "nan": "not a finite", "corrupt": "cannot read", "empty": "cannot read"}.items():
        line = next(line for line in errors.splitlines() if f"/{name}." in line)
        assert reason in line, line
    output, errors = run("encode", folder, "-o", tmp_path / "units", "--resample", "--vad")
    assert "1 were done" in output
    assert {"good.wav", "long.wav", "rate.wav"} == {name.partition("#")[0] for name in by_name(tmp_path / "units")}
    _, errors = run("encode", folder / "silent.wav", "-o", tmp_path / "none", expect=2)
    assert "no file could be encoded" in errors and "silent.wav" in errors


def test_units_of_two_kinds_are_never_mixed(recordings: Path, tmp_path: Path, run) -> None:
    run("encode", recordings, "-o", tmp_path / "units")
    _, errors = run("encode", recordings, "-o", tmp_path / "units", "--no-collapse", expect=2)
    assert "fingerprint" in errors and "options" in errors
    run("encode", recordings, "-o", tmp_path / "frames", "--no-collapse")
    every = UnitFolder.open(tmp_path / "frames").utterances()
    assert all((utterance.durations == 1).all() for utterance in every)
    _, errors = run("prepare", tmp_path / "units", tmp_path / "frames", "-o", tmp_path / "set", expect=2)
    assert "fingerprint" in errors and not (tmp_path / "set").exists()
    (tmp_path / "frames" / "units.json").write_bytes((tmp_path / "units" / "units.json").read_bytes())
    _, errors = run("prepare", tmp_path / "frames", "-o", tmp_path / "set", expect=2)
    assert "fingerprint" in errors
    _, errors = run("play", tmp_path / "units", "-o", tmp_path / "x.wav", "--no-collapse", expect=2)
    assert "fingerprint" in errors


def test_an_output_without_a_folder(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run) -> None:
    monkeypatch.chdir(tmp_path)
    run("encode", recordings / "a", "-o", "units")
    run("fit", recordings / "a", "-o", "codebook.safetensors", "--units", 16, "--frames", 300)
    run("encode", recordings / "a", "-o", "others", "--codebook", "codebook.safetensors")
    assert UnitFolder.open(Path("others")).description.units == 16
    assert json.loads(Path("units/units.json").read_text())["units"] == 100


def test_long_audio_is_cut_where_it_is_quiet() -> None:
    """Pauses part segments; a stretch without any is cut at most every `longest` seconds, nothing is lost in it."""
    pause = 1e-4 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    wave = np.concatenate([pause, babble(2, 1), pause, babble(3, 2), pause])
    found = speech_segments(wave, RATE, longest=10)
    assert len(found) == 2
    for (start, stop), (begin, end) in zip(found, ((1, 3), (4, 7)), strict=True):
        assert abs(start / RATE - begin) < 0.2 and abs(stop / RATE - end) < 0.2
    parts = speech_segments(babble(20, 3), RATE, longest=3)
    assert all(stop - start <= 3 * RATE for start, stop in parts)
    assert sum(stop - start for start, stop in parts) > 19 * RATE
    assert all(a[1] <= b[0] for a, b in zip(parts, parts[1:], strict=False))


def test_resampling_keeps_the_units_nearly(tmp_path: Path) -> None:
    """The same sound at 48 kHz gives the same number of frames, and is refused without --resample."""
    slow = babble(2)
    write_audio(tmp_path / "slow.wav", slow, RATE)
    fast = np.interp(np.arange(6 * RATE) / 3, np.arange(2 * RATE), slow).astype(np.float32)
    write_audio(tmp_path / "fast.wav", fast, 3 * RATE)
    with pytest.raises(InputError, match="48000 Hz, want 16000"):
        read_audio(tmp_path / "fast.wav", RATE)
    encoder = open_encoder(collapse=False)
    a, b = (encoder.encode_one(read_audio(tmp_path / f"{name}.wav", RATE, True)).units for name in ("slow", "fast"))
    assert len(a) == len(b) == 50 and (a == b).mean() > 0.5


@pytest.mark.parametrize("rate", [20, 2_000_000_011])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: int) -> None:
    write_audio(tmp_path / "a.wav", np.sin(np.arange(64, dtype=np.float32)), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=f"damaged: {rate} Hz is no rate"):
        read_audio(tmp_path / "a.wav", RATE, resample=True)


def test_a_missing_library_is_named(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(InputError, match=r"pip install 'hotplate\[speech\]'"):
        read_audio(recordings / "a" / "00.wav", RATE)
