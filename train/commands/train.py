"""`hotplate train [PRESET] [flags]`: train a language model on a compute budget."""

from collections.abc import Sequence

from hotplate.train import settings
from hotplate.train.budget import Goodput
from hotplate.train.console import say
from hotplate.train.run import run

DEFAULT = "demo"


def main(arguments: Sequence[str]) -> int:
    """Preset, then flags over it; `--help` lists every field with its default under that preset."""
    if list(arguments[:1]) == ["--presets"]:
        say("\n".join(settings.preset_names()))
        return 0
    preset, flags = settings.split_preset(arguments, DEFAULT)
    default = settings.load_preset(preset)
    config = settings.parse(default, flags, f"hotplate train {preset}")
    return run(config, preset.rsplit("/", 1)[-1].removesuffix(".toml"), Goodput.of_process())
