"""The growth study's own files: what it keeps between calls, when that is damaged or of another plan."""

from pathlib import Path

import pytest

from hotplate.train.commands import growth_study as command
from hotplate.train.commands import guarded
from hotplate.train.errors import InputError
from hotplate.train.science.growth_study import Curve, read_curve


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"small": 1e-6', "not JSON"),
        (b'{"small": "fast"}', "small: want seconds per token above 0, got 'fast'"),
        (b"{}", "small: missing"),
    ],
)
def test_damaged_costs_start_nothing_and_say_what_to_do(tmp_path: Path, content: bytes, message: str, capsys) -> None:
    path = tmp_path / "seconds_per_token.json"
    path.write_bytes(content)
    assert guarded(command.main, [f"--folder={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: {message}" in line and "delete it: they are measured again then" in line
    assert list(tmp_path.iterdir()) == [path]


def test_a_curve_is_of_whole_lines_and_a_run_without_a_validation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 8, "validation_loss": 2.5}\n{"step": 2, "loss": 2.0}\n{"step": 3, "tok')
    assert read_curve(tmp_path) == Curve((8,), (2.5,))
    path.write_text('{"step": 2, "loss": 2.0}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: no validation in it; delete .*: it is trained again then"):
        read_curve(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot read the records of a run: No such file"):
        read_curve(tmp_path)
