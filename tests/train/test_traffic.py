"""What engines ask of a rank, against counts by hand."""

from dataclasses import replace

import pytest

from hotplate.model.presets import PRESETS
from hotplate.train.commands.scale import main
from hotplate.train.config import EngineConfig, OptimizerConfig, TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.traffic import Sizes, demand

CONFIG = TrainConfig(model=PRESETS["decoder-nano"])
P = Sizes.of(CONFIG.model)


def of(precision="fp32", ranks=8, micro=1, optimizer=None, **engine):
    config = replace(CONFIG, engine=EngineConfig(**engine), optimizer=optimizer or CONFIG.optimizer)
    return demand(config, precision, ranks, micro)


def test_alone_nothing_is_sent_and_all_is_held() -> None:
    for engine in ({}, {"kind": "fsdp"}):
        assert of(ranks=1, **engine).sent == 0
        assert of(ranks=1, **engine).held == 16 * P.total


def test_ddp_reduces_gradients_once_or_narrow_in_every_micro_batch() -> None:
    assert of(micro=4).sent == 2 * (4 * P.total * 7 // 8)
    assert of("bf16", micro=4).sent == 4 * 2 * (2 * P.total * 7 // 8)
    muon = of(optimizer=OptimizerConfig(kind="muon"))
    assert muon.sent - of().sent == 4 * P.matrices * 7 // 8
    assert of().held - muon.held == 4 * P.matrices


def test_shares_shrink_with_ranks_and_replicas_trade_memory_for_traffic() -> None:
    whole, hybrid = of("bf16", 64, kind="fsdp"), of("bf16", 64, kind="fsdp", replicas=8)
    assert whole.held == 16 * P.total // 64 and hybrid.held == 16 * P.total // 8
    assert whole.between == 0 and hybrid.between == 2 * (4 * P.total // 8 * 7 // 8)
    kept = of("bf16", 64, kind="fsdp", reshard=False)
    assert whole.sent - kept.sent == pytest.approx(2 * (P.total - P.root) * 63 / 64, abs=2)
    assert of(kind="deepspeed", zero=1).held > of(kind="deepspeed", zero=2).held > of(kind="deepspeed", zero=3).held


def test_the_table_names_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match="got \\['horovod'\\]"):
        main(["gpt-nano", "--engines", "horovod"])
