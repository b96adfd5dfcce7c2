"""Published data: a card's name is enough for its budgets."""

from dataclasses import replace

import pytest
import torch

from hotplate.model.presets import PRESETS
from hotplate.train.budget import Budget, make_plan
from hotplate.train.errors import InputError
from hotplate.train.plan import lay_out, plan_run
from hotplate.train.published import best_runs, reference_throughput, throughputs
from hotplate.train.ranks import Ranks
from hotplate.train.settings import load_preset


@pytest.mark.parametrize("run", best_runs(), ids=lambda run: f"{run.model}-{run.budget}")
def test_published_steps_follow_from_the_card_and_the_model(run) -> None:
    speed = reference_throughput("rtx3090", PRESETS[run.model])
    assert make_plan(Budget.parse(run.budget), run.batch * 512, speed).steps == run.steps


def test_the_training_plan_takes_the_reference_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.train.plan.measure", None)
    ranks = Ranks(0, 1, torch.device("cpu"))
    for preset, steps in (("languini-gpt-small-6h", 18_265), ("languini-qlstm-mini-6h", 49_982)):
        config = load_preset(preset)
        assert plan_run(config, ranks, "fp32", lay_out(config, ranks)).steps == steps
        given = replace(config, tokens_per_second=1000.0)
        assert plan_run(given, ranks, "fp32", lay_out(given, ranks)).tokens_per_second == 1000.0


def test_every_published_model_is_one_of_ours() -> None:
    for card in ("RTX 3090", "rtx 4090", "A100-80G", "v100 32g", "P100-16G", "titan x"):
        assert set(throughputs(card)[1]) <= set(PRESETS)


def test_unknown_cards_and_models_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean RTX 3090"):
        reference_throughput("RTX 3080", PRESETS["gpt-mini"])
    with pytest.raises(
        InputError, match="no published throughput of gpt-xl there; published for the RTX 3090: gpt-mini"
    ):
        reference_throughput("RTX 3090", PRESETS["gpt-xl"])
    with pytest.raises(InputError, match="a model of these sizes"):
        reference_throughput("RTX 3090", replace(PRESETS["gpt-mini"], width=100))
