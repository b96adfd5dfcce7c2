"""Presets, TOML files and flags: one source of truth, and clear words for what is not in it."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
import tomli_w

from hotplate.model.presets import PRESETS
from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.settings import load_preset, merge, parse, preset_names, split_preset, to_table


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_toml(name: str) -> None:
    config = load_preset(name)
    again = merge(TrainConfig(), tomllib.loads(tomli_w.dumps(to_table(config))), name)
    assert again == config


def test_every_field_has_a_place_in_the_help_and_configs_stay_small() -> None:
    def walk(kind: type) -> None:
        fields = dataclasses.fields(kind)
        assert len(fields) <= 20, f"{kind.__name__} has {len(fields)} fields"
        for field in fields:
            if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
                walk(field.type)

    walk(TrainConfig)


def test_files_extend_presets_and_flags_override_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "gpt-mini"\nbatch = 32\n[optimizer]\nlr = 1\n[model.mixer]\nheads = 4\n', encoding="utf-8"
    )
    config = load_preset(str(path))
    assert config.batch == 32 and config.optimizer.lr == 1.0
    assert config.model == dataclasses.replace(
        PRESETS["gpt-mini"], mixer=dataclasses.replace(PRESETS["gpt-mini"].mixer, heads=4)
    )
    changed = parse(config, ["--batch", "64", "--data.mode", "stream"], "test")
    assert changed.batch == 64 and changed.data.mode == "stream" and changed.optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bacth = 3", "did you mean 'batch'"),
        ("[model]\nlayer = 3", "did you mean 'layers'"),
        ('batch = "many"', "batch: want int, got 'many'"),
        ('[data]\nmode = "random"', "want one of packed, stream"),
        ("[model]\nlayers = 0", "sizes >= 1"),
        ("batch = [", "not valid TOML"),
        ('extends = "nothing"', "neither a .toml file nor a preset"),
        ("seed = true", "seed: want int"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_preset(str(path))


def test_unknown_presets_and_circles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean gpt-small"):
        load_preset("gpt-smal")
    path = tmp_path / "circle.toml"
    path.write_text(f'extends = "{path}"', encoding="utf-8")
    with pytest.raises(InputError, match="extends itself"):
        load_preset(str(path))


def test_the_preset_is_the_first_argument_that_is_not_a_flag() -> None:
    assert split_preset(["gpt-mini", "--batch", "4"], "demo") == ("gpt-mini", ["--batch", "4"])
    assert split_preset(["--batch", "4"], "demo") == ("demo", ["--batch", "4"])


def test_wrong_flags_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(TrainConfig(), ["--bacth", "4"], "hotplate train")
    assert stopped.value.code == 2
    assert "--batch" in capsys.readouterr().err
