"""Configs from presets, TOML files and flags, and back into TOML.

A TOML file mirrors `TrainConfig`; `extends = "NAME"` names the preset or file it starts from, and `[model]` may be
left out when that preset brings one. Names resolve in this order: a .toml path, a checkpoint folder (its settings, and
its weights to start from), a preset shipped in train/presets, a model size of model/presets.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from hotplate.model.presets import PRESETS
from hotplate.train.checkpoint import MANIFEST, find
from hotplate.train.config import RunConfig, TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.untrusted import read_toml

SHIPPED = Path(__file__).parent / "presets"
Config = TypeVar("Config")


def preset_names() -> list[str]:
    """Shipped run presets, then model sizes."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml")) + list(PRESETS)


def load_preset(name: str, seen: tuple[str, ...] = ()) -> TrainConfig:
    """The config that `name` stands for. InputError for an unknown name, a bad file or a circle of `extends`."""
    if name in seen:
        raise InputError(f"preset: {' -> '.join([*seen, name])} extends itself; break the circle")
    if _is_file(Path(name) / MANIFEST):
        return _from_checkpoint(Path(name))
    path = Path(name) if name.endswith(".toml") else SHIPPED / f"{name}.toml"
    if not _is_file(path):
        if name in PRESETS:
            return TrainConfig(model=PRESETS[name])
        near = difflib.get_close_matches(name, preset_names(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(preset_names())}"
        raise InputError(f"preset: {name[:200]!r} is neither a .toml file nor a preset{hint}")
    values = read_toml(path)
    base = values.pop("extends", None)
    start = load_preset(str(base), (*seen, name)) if base is not None else TrainConfig()
    return merge(start, values, str(path))


def _from_checkpoint(path: Path) -> TrainConfig:
    """The settings that the checkpoint was trained with, for a new run that starts from it."""
    found = find(path)
    config = merge(TrainConfig(), found.trainer["config"], f"{path}: trainer.json: config")
    run = RunConfig(start=str(path), start_optimizer=any(not key.startswith("master.") for key in found.optimizer))
    return dataclasses.replace(config, run=run)


def _is_file(path: Path) -> bool:
    """False also for what can be no path: too long, or with a zero byte."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def merge(base: Config, values: Mapping[str, Any], where: str) -> Config:
    """`base` with the fields in `values` replaced, tables recursively. InputError for an unknown field or type."""
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            raise InputError(
                f"{where}: no field {key!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}")
            )
        current = getattr(base, key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            changes[key] = merge(current, value, f"{where}: {key}")
        else:
            changes[key] = _coerce(value, hints[key], f"{where}: {key}")
    try:
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` says, integers widened to floats. InputError otherwise."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(value, next(option for option in options if option is not type(None)), where)
    if origin is typing.Literal:
        if value not in options:
            raise InputError(f"{where}: want one of {', '.join(map(str, options))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: want a list, got {value!r}")
        return tuple(_coerce(item, options[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{where}: want {getattr(hint, '__name__', hint)}, got {value!r}")
    return value


def to_table(config: Any) -> dict[str, Any]:
    """A config as nested dictionaries without Nones: what TOML can hold."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return clean(dataclasses.asdict(config))


def parse(default: Config, arguments: Sequence[str], prog: str) -> Config:
    """`default` with flags over it. Wrong flags exit with code 2 and a hint, as the command-line library prints it;
    values that the dataclass itself refuses raise InputError."""
    try:
        return tyro.cli(type(default), args=list(arguments), prog=prog, default=default)
    except ValueError as error:
        raise InputError(f"{prog}: {error}") from error


def split_preset(arguments: Sequence[str], default: str) -> tuple[str, list[str]]:
    """(preset, flags): the preset is the first argument when it is not a flag."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    return default, list(arguments)
