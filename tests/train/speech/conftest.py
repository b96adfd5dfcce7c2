"""Recordings, the command, and a data set made of them."""

from pathlib import Path

import pytest
from speech_waves import RATE, babble

from hotplate.train.commands import guarded, speech
from hotplate.train.speech.audio import write_audio


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 wav files of 0.6 to 2.9 seconds, in two sub-folders."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(24):
        write_audio(folder / f"{'ab'[number % 2]}/{number:02d}.wav", babble(0.6 + 0.1 * number, number), RATE)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """A function (*arguments, expect=0) -> what `hotplate speech` printed: (output, errors)."""

    def call(*arguments: object, expect: int = 0) -> tuple[str, str]:
        code = guarded(speech.main, [str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert code == expect, output
        assert "Traceback" not in output.err
        return output.out, output.err

    return call


@pytest.fixture(scope="session")
def unit_set(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings as a data set of the embedded units."""
    folder = tmp_path_factory.mktemp("units")
    assert speech.main(["encode", str(recordings), "-o", str(folder / "units")]) == 0
    arguments = ["prepare", str(folder / "units"), "-o", str(folder / "set"), "--validation=0.1", "--test=0.1"]
    assert speech.main(arguments) == 0
    return folder / "set"
