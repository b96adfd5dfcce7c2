"""Budgets: every published run's step count, the units, and the meters."""

import time

import pytest

from hotplate.train.budget import Budget, Goodput, make_plan
from hotplate.train.errors import InputError

# Languini Kitchen, table of published best configurations: class, tokens/s on an RTX 3090, batch, steps, tokens.
PUBLISHED = [
    ("6h", 55_416, 128, 18_265, 1_196_985_600),
    ("12h", 55_416, 128, 36_529, 2_393_971_200),
    ("24h", 55_416, 256, 36_529, 4_787_942_400),
    ("48h", 16_618, 256, 21_908, 2_871_590_400),
    ("96h", 16_618, 256, 43_817, 5_743_180_800),
    ("6h", 94_781, 80, 49_982, 2_047_269_600),
    ("12h", 36_930, 80, 38_950, 1_595_376_000),
    ("24h", 11_143, 84, 22_385, 962_755_200),
    ("48h", 11_143, 80, 47_010, 1_925_510_400),
    ("96h", 11_143, 160, 47_010, 3_851_020_800),
]


@pytest.mark.parametrize(("budget", "speed", "batch", "steps", "tokens"), PUBLISHED)
def test_published_runs_are_reproduced(budget: str, speed: int, batch: int, steps: int, tokens: int) -> None:
    parsed = Budget.parse(budget)
    plan = make_plan(parsed, batch * 512, speed)
    assert plan.steps == steps
    assert speed * parsed.amount == tokens
    assert abs(plan.tokens - tokens) <= batch * 512 / 2
    hours = plan.hours(plan.tokens)
    assert hours == pytest.approx(parsed.amount / 3600, abs=batch * 512 / speed / 3600)


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("6h", "seconds", 21_600),
        ("90s", "seconds", 90),
        ("20m", "seconds", 1200),
        ("1.5d", "seconds", 129_600),
        ("1.2e9tok", "tokens", 1.2e9),
        ("3tokens", "tokens", 3),
        ("500steps", "steps", 500),
        ("1step", "steps", 1),
        (".5h", "seconds", 1800),
    ],
)
def test_units(text: str, unit: str, amount: float) -> None:
    assert Budget.parse(text) == Budget(unit, amount)


@pytest.mark.parametrize("text", ["", "6", "h", "-6h", "0h", "6 hours", "1e999h", "nan h", "6h6m", "0steps"])
def test_other_texts_are_refused_with_examples(text: str) -> None:
    with pytest.raises(InputError, match="90s, 20m, 6h"):
        Budget.parse(text)


def test_a_budget_below_one_step_or_without_throughput_is_refused() -> None:
    with pytest.raises(InputError, match="less than one step of 65536 tokens"):
        make_plan(Budget("tokens", 1000), 65_536, None)
    with pytest.raises(InputError, match="needs a throughput"):
        make_plan(Budget("seconds", 60), 512, None)


def test_goodput_accounts_for_every_second_once() -> None:
    began = time.monotonic()
    meter = Goodput()
    meter.switch("train")
    meter.add({"train": 60.0})
    meter.add({"train": 40.0})
    time.sleep(0.05)
    with meter.during("save"):
        time.sleep(0.03)
        with meter.during("evaluate"):
            time.sleep(0.02)
    paid = meter.paid
    spent = meter.snapshot()
    assert paid == pytest.approx(100 + time.monotonic() - began, abs=0.02)
    assert sum(spent.values()) == pytest.approx(paid, abs=0.02)
    assert spent["save"] >= 0.03 and spent["evaluate"] >= 0.02 and spent["train"] >= 100.05
    assert spent["save"] < 0.05  # the nested evaluation is not counted twice
