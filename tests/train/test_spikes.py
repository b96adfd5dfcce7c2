"""Loss spikes: told from the loss's own past, on the device, and as the policy says."""

import math

import numpy as np
import pytest
import torch

from hotplate.train.spikes import LossWatch

CPU = torch.device("cpu")


def judged(watch: LossWatch, losses) -> list[tuple[bool, bool]]:
    verdicts = [watch.judge(torch.tensor(loss, dtype=torch.float32)) for loss in losses]
    return [(bool(verdict.spike), bool(verdict.veto)) for verdict in verdicts]


def noisy(count: int, level: float = 3.0) -> np.ndarray:
    return level + 0.1 * np.random.default_rng(3).standard_normal(count)


def test_statistics_are_those_of_the_window() -> None:
    watch = LossWatch("warn", 6.0, 50, CPU)
    assert not any(spike for spike, _ in judged(watch, noisy(2000)))
    seen, mean, variance = watch.statistics.tolist()
    assert seen == 2000
    assert mean == pytest.approx(3.0, abs=0.05) and math.sqrt(variance) == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("policy", ["warn", "skip"])
def test_ten_deviations_are_a_spike_and_four_are_not(policy) -> None:
    watch = LossWatch(policy, 6.0, 50, CPU)
    judged(watch, noisy(500))
    _, mean, variance = watch.statistics.tolist()
    deviation = math.sqrt(variance)
    assert judged(watch, [mean + 4 * deviation]) == [(False, False)]
    _, mean, variance = watch.statistics.tolist()
    assert judged(watch, [mean + 10 * math.sqrt(variance)]) == [(True, policy == "skip")]
    assert judged(watch, [mean - 10 * deviation]) == [(False, False)]  # falling is what losses are for


def test_the_first_updates_are_never_spikes_and_one_outlier_is_not_learned() -> None:
    watch = LossWatch("skip", 6.0, 50, CPU)
    assert judged(watch, [11.0, 3.0, 30.0]) == [(False, False)] * 3
    judged(watch, noisy(3000))
    before = watch.statistics[1].item()
    assert judged(watch, [1e6]) == [(True, True)]
    assert watch.statistics[1].item() - before < 6 * 0.2 / 50
    verdicts = judged(watch, noisy(2000, 4.0))
    assert verdicts[0][0] and not any(spike for spike, _ in verdicts[-500:])  # a lasting level is learned


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_vetoed_and_moves_nothing(loss: float) -> None:
    watch = LossWatch("warn", 6.0, 50, CPU)
    judged(watch, noisy(100))
    before = watch.statistics.clone()
    assert judged(watch, [loss]) == [(False, True)]
    assert torch.equal(watch.statistics, before)


def test_a_checkpoint_carries_the_statistics_on() -> None:
    one, two = LossWatch("warn", 6.0, 50, CPU), LossWatch("warn", 6.0, 50, CPU)
    judged(one, noisy(120))
    two.load(one.statistics)
    again = noisy(60)
    assert judged(one, again) == judged(two, again) and torch.equal(one.statistics, two.statistics)


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="want sigmas > 0 and window >= 2"):
        LossWatch("warn", 0.0, 50, CPU)
