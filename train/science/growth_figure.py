"""The growth study's figure: validation loss against tokens, a panel per target, a line per way."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from hotplate.train.science.figures import FAMILIES, PALETTE, STYLE


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Mean over seeds, shaded from the lowest to the highest; scratch in ink."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    ways = [way for way in dict.fromkeys(row["way"] for row in rows) if way != "scratch"]
    colours = {way: PALETTE[FAMILIES[n % len(FAMILIES)]][0] for n, way in enumerate(ways)}
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(5.2 * len(targets), 3.6), layout="constrained")
        for panel, target in zip(figure.subplots(1, len(targets), squeeze=False)[0], targets, strict=True):
            for row in (row for row in rows if row["target"] == target):
                tokens = np.array(row["curves"][0]["tokens"]) / 1e3
                losses = np.array([curve["losses"] for curve in row["curves"]])
                colour = colours.get(row["way"], PALETTE["ink"][0])
                panel.plot(tokens, losses.mean(0), color=colour, label=row["way"], linewidth=1.4)
                panel.fill_between(tokens, losses.min(0), losses.max(0), color=colour, alpha=0.15, linewidth=0)
            panel.set_title(target)
            panel.set_xlabel("thousand tokens of the large model")
            panel.set_ylabel("validation loss, nats per token")
            panel.legend()
        figure.savefig(path, dpi=160)
