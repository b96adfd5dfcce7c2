"""Learning-rate schedules at their landmarks."""

import pytest

from hotplate.train.config import ScheduleConfig
from hotplate.train.schedule import factor

PUBLISHED = ScheduleConfig(kind="cosine", warmup_steps=200, minimum=0.01)


@pytest.mark.parametrize(("step", "rate"), [(0, 3.0e-6), (199, 5.99824e-4), (9131, 3.03026e-4), (18_264, 6e-6)])
def test_cosine_is_the_published_schedule(step: int, rate: float) -> None:
    assert 6e-4 * factor(PUBLISHED, step, 18_265) == pytest.approx(rate, rel=2e-5)


def test_after_the_end_the_minimum_holds() -> None:
    assert factor(PUBLISHED, 30_000, 18_265) == pytest.approx(0.01)


def test_wsd_is_flat_then_falls_to_the_minimum() -> None:
    config = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.2, minimum=0.1)
    values = [factor(config, step, 100) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9:79] == [1.0] * 70
    assert values[89] == pytest.approx(0.1 + 0.9 * 0.5) and values[99] == pytest.approx(0.1)
    assert values[80:] == sorted(values[80:], reverse=True)


def test_constant_only_warms_up() -> None:
    config = ScheduleConfig(kind="constant", warmup=0.0)
    assert [factor(config, step, 10) for step in range(10)] == [1.0] * 10
