"""What runs leave behind, and the comparison of two of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hotplate.train import checkpoint, session
from hotplate.train.sinks import read_records


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(checkpoint.listing(folder / "checkpoints")[-1]).model)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_records(folder / "metrics.jsonl") if "loss" in r]


def same(a: Path, b: Path) -> None:
    """Bit for bit: weights, optimiser, carried state, and the loss of every step."""
    assert losses(a) == losses(b)
    first, second = (checkpoint.load(checkpoint.listing(f / "checkpoints")[-1]) for f in (a, b))
    assert first.trainer["step"] == second.trainer["step"]
    for part in ("model", "optimizer", "state"):
        mine, other = getattr(first, part), getattr(second, part)
        assert mine.keys() == other.keys()
        for name in mine:
            assert torch.equal(mine[name], other[name]), f"{part} {name}"


@contextmanager
def interrupted_after(step: int) -> Iterator[None]:
    """The run in here ends by a KeyboardInterrupt, as soon as the checkpoint of that step is saved."""
    kept = session.Session._save

    def save(self, progress):
        kept(self, progress)
        if progress.step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(session.Session, "_save", save)
        yield
