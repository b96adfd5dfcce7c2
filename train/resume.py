"""Going on from a checkpoint: what may have changed since, and what must not."""

from collections.abc import Mapping, Sequence
from typing import Any

from hotplate.train.config import TrainConfig
from hotplate.train.data.dataset import Dataset
from hotplate.train.errors import InputError
from hotplate.train.settings import to_table

# Changing these makes it another run; changing those below changes the course of this one.
STRUCTURAL = (
    "model.",
    "batch",
    "seed",
    "data.mode",
    "data.window",
    "data.document_resets",
    "optimizer.kind",
    "growth.",
    "preference.",
    "run.start",
)
COURSE = ("budget", "tokens_per_second", "reference", "precision", "optimizer.", "schedule.", "guard.spike")


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"window": 512}} as {"data.window": 512}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_config(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Names of course-changing fields that differ (allowed by the config). InputError with a table of differences
    when a structural field differs, or a course-changing one without permission."""
    before, now = flatten(saved), flatten(to_table(config))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    structural = [key for key in changed if key.startswith(STRUCTURAL)]
    course = [key for key in changed if key.startswith(COURSE) and key not in structural]
    wrong = structural or ([] if config.run.allow_config_change else course)
    if wrong:
        lines = _table(wrong, before, now)
        fix = (
            "use the checkpoint's values, or a new --run.folder"
            if structural
            else "use the checkpoint's values, or --run.allow-config-change"
        )
        raise InputError(f"resume: the config differs from the checkpoint's:{lines}\n  {fix}")
    return course


def differences(saved: Mapping[str, Any], table: Mapping[str, Any], ignore: tuple[str, ...] = ()) -> str:
    """One line per field in which two config tables differ; empty when none does."""
    before, now = flatten(saved), flatten(table)
    wrong = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in ignore]
    return _table(wrong, before, now)


def _table(keys: Sequence[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return "".join(f"\n  {key}: checkpoint {before.get(key)!r}, now {now.get(key)!r}" for key in keys)


def check_data(saved: Mapping[str, Any], dataset: Dataset, allow: bool) -> None:
    """InputError when the tokeniser differs, or the data set does without permission."""
    if saved["tokenizer"] != dataset.tokenizer.fingerprint:
        raise InputError(
            f"resume: the checkpoint's tokeniser is {saved['tokenizer'][:16]}, the data set's is "
            f"{dataset.tokenizer.fingerprint[:16]}; token ids would mean other text: use the original data"
        )
    if saved["data"] != dataset.fingerprint and not allow:
        raise InputError(
            f"resume: the data set changed since the checkpoint (fingerprint {saved['data'][:16]}, "
            f"now {dataset.fingerprint[:16]}); use the original, or --data.allow-change"
        )
