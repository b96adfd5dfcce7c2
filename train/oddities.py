"""Batches of updates that were skipped or whose loss jumped, kept for inspection.

Batches are functions of the step: the loop keeps none, and the few that turn out odd are made again.
"""

from dataclasses import fields
from pathlib import Path

import safetensors.torch

from hotplate.train.inputs import Source
from hotplate.train.loop import Oddity

FOLDER = "skipped"
MOST = 16  # kept; a run that skips more has one cause, not many


def keep_batch(folder: Path, oddity: Oddity, source: Source, rows: int) -> str:
    """Write RUN/skipped/step-N.safetensors, all `rows` global rows of the batch. Returns the line to say."""
    did = "skipped" if oddity.skipped else "applied"
    line = (
        f"warning: update {oddity.step + 1} was {did}: {oddity.reason}, loss {oddity.loss:.4g}, gradient norm "
        f"{oddity.norm:.4g}; its batch is step {oddity.step}, rows 0 to {rows - 1}"
    )
    kept = folder / FOLDER
    if len(list(kept.glob("step-*"))) >= MOST:
        return line
    path = kept / f"step-{oddity.step:08d}.safetensors"
    batch = source.batch(oddity.step, range(rows))
    tensors = {field.name: x for field in fields(batch) if (x := getattr(batch, field.name)) is not None}
    facts = {"step": str(oddity.step), "reason": oddity.reason, "loss": repr(oddity.loss), "norm": repr(oddity.norm)}
    try:
        kept.mkdir(exist_ok=True)
        safetensors.torch.save_file(tensors, path, facts)
    except (OSError, safetensors.SafetensorError) as error:
        return f"{line}, not kept: {error}"
    return f"{line}, kept in {path}"
