"""Named model sizes.

mini ... xl are Languini Kitchen's (its section 3 table; head widths as published, also where heads * head_width differs
from the width). nano fits a CPU. decoder-* are the modern form: RMSNorm, rotary positions, grouped queries, SwiGLU.
"""

from dataclasses import replace

from hotplate.model.config import MixerConfig, MixerKind, ModelConfig

#       layers, width, ffn, heads, head width
SIZES = {
    "nano": (4, 128, 512, 4, 32),
    "mini": (4, 512, 2048, 8, 32),
    "tiny": (4, 768, 3072, 12, 64),
    "small": (12, 768, 3072, 12, 64),
    "medium": (24, 1024, 4096, 16, 64),
    "large": (24, 1536, 6144, 16, 96),
    "xl": (24, 2048, 8192, 24, 128),
}


def _languini(kind: MixerKind, size: str) -> ModelConfig:
    layers, width, ffn, heads, head_width = SIZES[size]
    return ModelConfig(
        layers=layers,
        width=width,
        ffn=ffn,
        positions="learned" if kind == "attention" else "none",
        mixer=MixerConfig(kind=kind, heads=heads, head_width=head_width),
    )


def _decoder(layers: int, width: int, ffn: int, heads: int, kv_heads: int, **changes) -> ModelConfig:
    mixer = MixerConfig(heads=heads, head_width=changes.pop("head_width", 64), kv_heads=kv_heads)
    mixer = replace(mixer, **{key: changes.pop(key) for key in ("rope_theta", "qk_norm") if key in changes})
    config = ModelConfig(
        layers=layers,
        width=width,
        ffn=ffn,
        mixer=mixer,
        mlp="swiglu",
        norm="rmsnorm",
        positions="rotary",
        bias="none",
        embedding_scale=1.0,
        tied=True,
    )
    return replace(config, **changes)


PRESETS: dict[str, ModelConfig] = {
    **{f"gpt-{size}": _languini("attention", size) for size in SIZES},
    **{f"qlstm-{size}": _languini("qlstm", size) for size in SIZES},
    **{f"lstm-{size}": _languini("lstm", size) for size in SIZES},
    **{f"lstm-dense-{size}": _languini("lstm_dense", size) for size in SIZES},
    **{f"lstm-diagonal-{size}": _languini("lstm_diagonal", size) for size in SIZES},
    "decoder-nano": _decoder(4, 128, 384, 4, 2, head_width=32),
    "decoder-micro": _decoder(6, 256, 768, 8, 4, head_width=32),
    "decoder-135m": _decoder(  # SmolLM2-135M's shape
        30, 576, 1536, 9, 3, vocab=49_152, context=2048, rope_theta=100_000.0
    ),
    "decoder-360m": _decoder(24, 1024, 2816, 16, 4, context=1024, qk_norm=True, tied=False),
    "decoder-0.5b": _decoder(  # Qwen2.5-0.5B's shape
        24, 896, 4864, 14, 2, vocab=151_936, context=2048, rope_theta=1e6, bias="qkv", norm_eps=1e-6
    ),
}
