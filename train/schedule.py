"""Learning rate over the budget."""

import math

from hotplate.train.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) as a fraction of the peak, in a run of `steps` updates.

    Everything is a function of the spent fraction (step + 1) / steps. The warm-up multiplies the decay, as Languini
    Kitchen's does: min(s + 1, W) / W * (min + (1 - min) * (1 + cos(pi * (s + 1) / steps)) / 2).
    """
    spent = min(step + 1, steps) / steps
    warmup = config.warmup_steps if config.warmup_steps is not None else config.warmup * steps
    rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    if config.kind == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * spent))
    elif config.kind == "wsd":
        shape = min(1.0, (1 - spent) / config.decay) if config.decay > 0 else 1.0
    else:
        return rise
    return rise * (config.minimum + (1 - config.minimum) * shape)
