"""Parameter and operation counts of the presets against the published ones."""

from dataclasses import replace

import pytest

from hotplate.model.cost import cost
from hotplate.model.presets import PRESETS

# Languini Kitchen, parameter counts of its released models at vocabulary 16,384 and 512 positions.
PUBLISHED = {
    "gpt-mini": 27_549_696,
    "gpt-tiny": 53_912_064,
    "gpt-small": 110_615_040,
    "gpt-medium": 336_390_144,
    "gpt-large": 731_077_632,
    "gpt-xl": 1_478_160_384,
    "qlstm-mini": 27_812_864,
    "qlstm-tiny": 55_881_216,
    "qlstm-small": 117_308_928,
    "qlstm-medium": 361_056_256,
    "qlstm-large": 786_951_168,
    "qlstm-xl": 1_628_180_480,
}
COUPLED = {"mini": 27_287_552, "tiny": 53_518_848, "small": 110_221_824, "large": 730_291_200}
FORWARD_GFLOPS = {  # its profiler, one window of 512 tokens, full attention square
    "gpt-mini": 20.42,
    "gpt-small": 109.61,
    "gpt-xl": 1555.2,
    "qlstm-mini": 19.89,
    "qlstm-small": 107.32,
    "qlstm-xl": 1633.63,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert cost(PRESETS[name], 512).parameters == PUBLISHED[name]


@pytest.mark.parametrize("size", COUPLED)
def test_coupled_parameter_counts_are_the_published_ones(size: str) -> None:
    preset = PRESETS[f"qlstm-{size}"]
    assert cost(replace(preset, mixer=replace(preset.mixer, coupled=True)), 512).parameters == COUPLED[size]


@pytest.mark.parametrize("name", FORWARD_GFLOPS)
def test_flops_agree_with_the_published_profile(name: str) -> None:
    counted = cost(PRESETS[name], 512, causal=False).forward_flops * 512 / 1e9
    assert counted == pytest.approx(FORWARD_GFLOPS[name], rel=3e-3)


def test_decoder_holds_published_shapes() -> None:
    assert cost(PRESETS["decoder-135m"], 512).parameters == 134_515_008  # SmolLM2-135M
    speech = replace(PRESETS["decoder-0.5b"], vocab=502)  # Qwen2.5-0.5B with a unit vocabulary
    assert cost(speech, 512).parameters == 358_347_904


@pytest.mark.parametrize("size", ["mini", "small"])
def test_lstm_adds_one_matrix_per_gate_and_head(size: str) -> None:
    config = PRESETS[f"lstm-{size}"]
    heads, width = config.mixer.heads, config.mixer.head_width
    extra = config.layers * 4 * heads * width * width
    assert cost(config, 512).parameters == PUBLISHED[f"qlstm-{size}"] + extra


@pytest.mark.parametrize("size", ["mini", "small"])
def test_other_lstms_add_a_matrix_or_a_vector_per_gate(size: str) -> None:
    dense, diagonal = PRESETS[f"lstm-dense-{size}"], PRESETS[f"lstm-diagonal-{size}"]
    layers, width = dense.layers, dense.mixer.width
    assert cost(dense, 512).parameters == PUBLISHED[f"qlstm-{size}"] + layers * 4 * width * width
    assert cost(diagonal, 512).parameters == PUBLISHED[f"qlstm-{size}"] + layers * 4 * width
    assert cost(dense, 512).forward_flops - cost(diagonal, 512).forward_flops == layers * 8 * (width * width - width)
