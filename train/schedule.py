"""Learning rate over the budget."""

import math

from hotplate.train.budget import Plan
from hotplate.train.config import GrowthConfig, ScheduleConfig

REUSE_END = 0.01  # of the rate it begins with (Parmar et al. 2024, "Reuse, Don't Retrain", section 4)
REUSE_SWITCH = math.acos((2 * 0.2 - 1 - REUSE_END) / (1 - REUSE_END)) / math.pi  # where it has fallen to a fifth


def shape(config: ScheduleConfig, spent: float) -> float:
    """Fraction of the peak after `spent` of the budget, without warm-up."""
    if config.kind == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * spent))
    elif config.kind == "wsd":
        decay = min(1.0, (1 - spent) / config.decay) if config.decay > 0 else 1.0
    else:
        return 1.0
    return config.minimum + (1 - config.minimum) * decay


def factor(config: ScheduleConfig, step: int, plan: Plan) -> float:
    """Learning rate of update `step` (from 0) as a fraction of the peak.

    Everything is a function of the fraction of the budget that is spent after the update. The warm-up multiplies the
    decay, as Languini Kitchen's does: min(s + 1, W) / W * (min + (1 - min) * (1 + cos(pi * (s + 1) / steps)) / 2).
    """
    spent = plan.spent(min(step + 1, plan.steps))
    done, whole = spent, config.warmup
    if config.warmup_steps is not None:
        done, whole = step + 1, config.warmup_steps
    rise = min(1.0, done / whole) if whole > 0 else 1.0
    if config.kind == "inverse_sqrt":
        return rise if rise < 1 else math.sqrt(whole / done) if whole > 0 else 1.0 / math.sqrt(step + 1)
    return rise * shape(config, spent)


def factor_after_growth(config: ScheduleConfig, growth: GrowthConfig, step: int, plan: Plan) -> float:
    """The same for an update of the grown model (plan.grows_after <= step), by the growth's own policy."""
    assert plan.grows_after is not None
    begin, spent = plan.spent(plan.grows_after), plan.spent(min(step + 1, plan.steps))
    rise = min(1.0, (spent - begin) / growth.warmup) if growth.warmup > 0 else 1.0
    rest = (spent - begin) / (1 - begin)
    if growth.schedule == "continue":
        return factor(config, step, plan)
    if growth.schedule == "rewarm":
        return rise * factor(config, step, plan)
    if growth.schedule == "restart":
        return rise * shape(config, rest)
    last = factor(config, plan.grows_after - 1, plan)
    return last * (REUSE_END + (1 - REUSE_END) * 0.5 * (1 + math.cos(math.pi * rest)))
