"""Saving: retention and writing beside training."""

from hotplate.bench.faults.scenario import Scenario

SCENARIOS: list[Scenario] = []
