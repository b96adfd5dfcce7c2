"""Maximal update parametrisation (Yang et al. 2022, "Tensor Programs V"): settings found at one width hold at others.

With m = width / mup_base, and per parameter by the axes that it declares (infinite axes grow with the width; the
others, the head width among them, stay):

    what it maps                                initial std    AdamW rate    Muon rate
    infinite -> infinite (hidden matrices)      1 / sqrt(m)    1 / m         1 / sqrt(m)
    anything else (tables, head, per-head
    matrices, biases, norms)                    1              1             1

    logits times 1 / m; token embedding times sqrt(mup_base), where the standard form has sqrt(width)

At width = mup_base all are the standard parametrisation. Muon's update has a fixed root mean square and orthogonal
rows, so its spectral norm grows with sqrt(m) unless its rate falls by it (Yang et al. 2023, "A spectral condition").
Heads must grow in number, not in width: attention keeps 1 / sqrt(head width).
"""

from hotplate.model.axes import Axes

INFINITE = frozenset({"residual", "ffn", "heads", "kv_heads"})


def hidden(axes: Axes) -> bool:
    """Whether a parameter maps one infinite axis to another."""
    return axes.reads is not None and {axes.names[axes.reads], axes.names[axes.writes]} <= INFINITE


def initial_scale(axes: Axes, multiplier: float) -> float:
    """Factor of the initial standard deviation at width multiplier m."""
    return multiplier**-0.5 if hidden(axes) else 1.0


def rate_scale(axes: Axes, multiplier: float, orthogonal: bool) -> float:
    """Factor of the learning rate at width multiplier m; `orthogonal` for Muon's updates."""
    if not hidden(axes):
        return 1.0
    return multiplier**-0.5 if orthogonal else 1.0 / multiplier
