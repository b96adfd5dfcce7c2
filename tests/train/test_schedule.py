"""Learning-rate schedules at their landmarks."""

import math

import pytest

from hotplate.train.budget import Plan
from hotplate.train.config import GrowthConfig, ScheduleConfig
from hotplate.train.growing import parts
from hotplate.train.schedule import factor, factor_after_growth

PUBLISHED = ScheduleConfig(kind="cosine", warmup_steps=200, minimum=0.01)
GROWS = Plan(1000, 64, 200.0, grows_after=400, grown_tokens_per_second=100.0)  # 400 + 600 x 2 in small updates


def plan(steps: int) -> Plan:
    return Plan(steps, 64, None)


@pytest.mark.parametrize(("step", "rate"), [(0, 3.0e-6), (199, 5.99824e-4), (9131, 3.03026e-4), (18_264, 6e-6)])
def test_cosine_is_the_published_schedule(step: int, rate: float) -> None:
    assert 6e-4 * factor(PUBLISHED, step, plan(18_265)) == pytest.approx(rate, rel=2e-5)


def test_after_the_end_the_minimum_holds() -> None:
    assert factor(PUBLISHED, 30_000, plan(18_265)) == pytest.approx(0.01)


def test_wsd_is_flat_then_falls_to_the_minimum() -> None:
    config = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.2, minimum=0.1)
    values = [factor(config, step, plan(100)) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9:79] == [1.0] * 70
    assert values[89] == pytest.approx(0.1 + 0.9 * 0.5) and values[99] == pytest.approx(0.1)
    assert values[80:] == sorted(values[80:], reverse=True)


def test_constant_only_warms_up() -> None:
    config = ScheduleConfig(kind="constant", warmup=0.0)
    assert [factor(config, step, plan(10)) for step in range(10)] == [1.0] * 10


def test_a_growing_plan_counts_dearer_steps() -> None:
    assert GROWS.spent(400) == pytest.approx(0.25) and GROWS.spent(700) == pytest.approx(0.625)
    assert GROWS.spent(1000) == 1.0 and GROWS.step_at(0.625) == 700 and GROWS.step_at(0.25) == 400
    assert GROWS.hours(400 * 64) == pytest.approx(400 * 64 / 200 / 3600)
    assert GROWS.hours(1000 * 64) == pytest.approx((400 * 64 / 200 + 600 * 64 / 100) / 3600)


def test_the_rate_after_growth_follows_the_policy() -> None:
    config = ScheduleConfig(kind="cosine", warmup=0.0, minimum=0.1)

    def rate(policy: str, step: int) -> float:
        return factor_after_growth(config, GrowthConfig(at=0.25, schedule=policy, warmup=0.1), step, GROWS)

    before = factor(config, 399, GROWS)
    assert rate("continue", 400) == factor(config, 400, GROWS) == pytest.approx(before, rel=1e-2)
    assert rate("rewarm", 439) == pytest.approx(0.5 * factor(config, 439, GROWS))
    assert rate("rewarm", 700) == factor(config, 700, GROWS)
    assert rate("restart", 479) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 80 / 600)))
    assert rate("reuse", 400) == pytest.approx(before, rel=1e-4) and rate("reuse", 999) == pytest.approx(before / 100)
    switch = parts(GrowthConfig(at=0.25, schedule="reuse", data="other"), GROWS)[1].until
    assert switch == 400 + math.ceil(0.7113 * 600) and rate("reuse", switch) < before / 5 < rate("reuse", switch - 2)
