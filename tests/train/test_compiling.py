"""Whether blocks compile is found out on one block; what fails without the compiler, too, is no finding about it.
`hotplate faults R31` does the same with whole runs."""

from dataclasses import replace

import pytest
import torch

from hotplate.model.batch import Batch
from hotplate.model.config import MixerConfig, ModelConfig
from hotplate.train.compiling import compile_failure
from hotplate.train.throughput import random_batch

MIXER = MixerConfig(kind="lstm", heads=2, head_width=16)
LSTM = ModelConfig(layers=2, width=32, ffn=48, vocab=64, context=16, positions="none", mixer=MIXER)
DECODER = replace(LSTM, mixer=replace(MIXER, kind="attention"))


def batch_of(model: ModelConfig) -> Batch:
    return random_batch(model, 2, 16, torch.device("cpu"))


@pytest.fixture(autouse=True)
def compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_a_block_that_compiles_fails_nowhere() -> None:
    assert compile_failure(LSTM, "fp32", batch_of(LSTM)) is None


def test_a_block_that_looks_at_its_data_is_told_in_one_line() -> None:
    documents = replace(batch_of(DECODER), cu_seqlens=torch.tensor([0, 5, 32], dtype=torch.int32))
    why = compile_failure(DECODER, "fp32", documents)
    assert why is not None and "\n" not in why and why.split(":")[0] in ("Unsupported", "UserError")


def test_what_fails_uncompiled_is_raised() -> None:
    batch = batch_of(DECODER)
    with pytest.raises(IndexError):
        compile_failure(DECODER, "fp32", replace(batch, tokens=batch.tokens + 1000))
