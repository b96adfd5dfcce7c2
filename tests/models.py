"""Tiny models of every architecture, with weights that are nowhere special, and batches for them."""

from dataclasses import replace

import torch

from hotplate.model.batch import Batch
from hotplate.model.config import MixerConfig, MixerKind, ModelConfig
from hotplate.model.lm import LanguageModel

RECURRENT: tuple[MixerKind, ...] = ("qlstm", "lstm", "lstm_dense", "lstm_diagonal")
TINY = {
    "gpt": ModelConfig(layers=2, width=24, ffn=40, vocab=37, context=32, mixer=MixerConfig(heads=2, head_width=8)),
    **{
        kind: ModelConfig(
            layers=2,
            width=24,
            ffn=40,
            vocab=37,
            positions="none",
            mixer=MixerConfig(kind=kind, heads=2, head_width=8),
        )
        for kind in RECURRENT
    },
    "decoder": ModelConfig(
        layers=2,
        width=24,
        ffn=40,
        vocab=37,
        context=32,
        mlp="swiglu",
        norm="rmsnorm",
        positions="rotary",
        bias="qkv",
        tied=True,
        embedding_scale=1.0,
        mixer=MixerConfig(heads=4, head_width=8, kv_heads=2, qk_norm=True),
    ),
}
SHARED = replace(TINY["lstm"], mixer=replace(TINY["lstm"].mixer, shared_recurrent=True))
COUPLED_TINY = replace(TINY["qlstm"], mixer=replace(TINY["qlstm"].mixer, coupled=True))
NEOX = replace(
    TINY["decoder"],
    mlp="gelu_erf",
    parallel=True,
    norm="layernorm",
    bias="all",
    tied=False,
    mixer=MixerConfig(heads=2, head_width=8, rotary_fraction=0.25),
)
OLMO = replace(TINY["decoder"], norm="plain_layernorm", bias="none", mixer=MixerConfig(heads=2, head_width=8))
OPT = replace(TINY["gpt"], mlp="relu", embedding_scale=1.0, tied=True)
RELU2 = replace(TINY["decoder"], mlp="relu2", bias="none", tied=False)


def build(config: ModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A model whose biases and norms are not at their special initial values."""
    model = LanguageModel.build(config, seed=1, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(dtype))
    return model


def rows_of(tokens: torch.Tensor, **changes) -> Batch:
    """A batch that predicts each next token; the last column's target is arbitrary."""
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    made = Batch(
        tokens=tokens,
        targets=tokens.roll(-1, 1),
        weights=torch.ones(tokens.shape, dtype=torch.float64),
        positions=positions,
        target_bytes=torch.zeros(tokens.shape, dtype=torch.int32),
    )
    return replace(made, **changes)


def random_tokens(rows: int = 3, steps: int = 11, vocab: int = 37, seed: int = 3) -> torch.Tensor:
    return torch.randint(vocab, (rows, steps), generator=torch.Generator().manual_seed(seed))
