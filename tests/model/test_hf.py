"""Hugging Face folders in and out: the same logits as `transformers`, also after growth."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from models import TINY, build, random_tokens, rows_of
from safetensors.torch import load_file, save_file

from hotplate.model import hf
from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.grow import grow
from hotplate.model.growth.strategies import Strategy
from hotplate.model.hf.configs import from_hf
from hotplate.model.lm import LanguageModel

SIZES = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2),
    "llama-tied": transformers.LlamaConfig(
        **SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "qwen2": transformers.Qwen2Config(
        **SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "olmo": transformers.OlmoConfig(
        **SIZES, intermediate_size=48, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES, intermediate_size=48, num_attention_heads=4),
    "gpt_neox-serial": transformers.GPTNeoXConfig(
        **SIZES, intermediate_size=48, num_attention_heads=4, use_parallel_residual=False
    ),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32, dropout=0.0),
}
IDS = torch.tensor([[3, 17, 42, 8, 99, 1, 56, 23, 77, 10, 64, 5]])


def fill(model: torch.nn.Module) -> None:
    """Deterministic values by name order, nowhere special (the rule that the golden values were made with)."""
    neox = model.config.model_type == "gpt_neox"  # its head is called embed_out in files, and was in the model then
    names = {("embed_out.weight" if neox and n == "lm_head.weight" else n): p for n, p in model.named_parameters()}
    with torch.no_grad():
        for k, (name, p) in enumerate(sorted(names.items())):
            i = torch.arange(p.numel(), dtype=torch.float64)
            v = torch.sin(0.7 * (k + 1) + 1.3 * i + 0.11 * ((i * i) % 17)).view(p.shape)
            norm = "norm" in name.rsplit(".", 2)[-2] and name.endswith("weight")
            p.copy_((1 + 0.2 * v if norm else 0.35 * v).float())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, config in CONFIGS.items():
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        fill(model)
        made[name] = tmp_path_factory.mktemp(name) / "hf"
        model.save_pretrained(made[name])
    return made


def theirs(folder: Path, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        return model(IDS).logits[0]


def ours(config: ModelConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    model = LanguageModel.build(config, 0, dtype=dtype)
    model.load_state_dict({name: x.to(dtype) for name, x in weights.items()})
    return model.logits(model.hidden(rows_of(IDS))[0])[0].detach()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, folders: dict[str, Path]) -> None:
    config, weights = hf.load(folders[name])
    expected = theirs(folders[name])
    # Rotation angles are fp32 in both, and not rounded alike.
    torch.testing.assert_close(ours(config, weights), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", CONFIGS)
def test_export_of_an_import_is_the_same_file(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    config, weights = hf.load(folders[name])
    hf.save(tmp_path / "out", config, weights, name.partition("-")[0])
    before, after = (load_file(f / "model.safetensors") for f in (folders[name], tmp_path / "out"))
    assert before.keys() == after.keys()
    for key in before:
        rows = 2 if "embed_positions" in key else 0  # never read without padding
        assert torch.equal(before[key][rows:], after[key][rows:]), key


@pytest.mark.parametrize("name", CONFIGS)
def test_a_grown_import_is_exported_with_the_same_logits(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    config, weights = hf.load(folders[name])
    for number, strategy in enumerate((Strategy(snr_db=None), Strategy())):
        large, grown = grow(weights, config, Factors(width=2, ffn=2, heads=2), strategy)
        error = (ours(large, grown) - ours(config, weights)).abs().max().item()
        assert error <= 1e-4  # grown in float64, kept in float32
        hf.save(tmp_path / str(number), large, grown, name.partition("-")[0])
        expected = theirs(folders[name])
        torch.testing.assert_close(theirs(tmp_path / str(number)), expected, rtol=1e-4, atol=1e-4)


GOLDEN = {  # last position: first six logits; sum, sum of magnitudes, cross entropy of the next tokens, argmax
    "llama": (
        [1.9506505, -1.0393296, 1.9753553, -0.2234087, -0.5048081, 1.6000945],
        18.116487,
        1380.15277,
        5.4807088,
        [8, 33, 8, 8, 33, 25, 78, 77, 15, 16, 25, 42],
    ),
    "gpt_neox": (
        [-0.7716120, -1.5853553, -0.2659189, -0.9264897, 1.7123893, -3.2834561],
        -0.208875,
        1689.68113,
        5.7744028,
        [90, 47, 92, 56, 73, 31, 13, 99, 90, 22, 13, 22],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_before_and_after_growth(name: str, folders: dict[str, Path]) -> None:
    first, total, magnitude, loss, best = GOLDEN[name]
    config, weights = hf.load(folders[name])
    models = [(config, weights), grow(weights, config, Factors(width=2, ffn=2, heads=2), Strategy(snr_db=None))]
    for each in models:
        logits = ours(*each)
        torch.testing.assert_close(logits[-1, :6], torch.tensor(first, dtype=torch.float64), rtol=0, atol=2e-5)
        assert logits.sum().item() == pytest.approx(total, abs=2e-3)
        assert logits.abs().sum().item() == pytest.approx(magnitude, rel=1e-5)
        nll = torch.nn.functional.cross_entropy(logits[:-1], IDS[0, 1:])
        assert nll.item() == pytest.approx(loss, abs=2e-5)
        assert logits.argmax(-1).tolist() == best


def test_our_gpt_is_exported_as_opt(tmp_path: Path) -> None:
    gpt = replace(TINY["gpt"], mixer=replace(TINY["gpt"].mixer, heads=3))
    model = build(gpt, torch.float32)
    hf.save(tmp_path / "gpt", model.config, dict(model.named_parameters()), "opt")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gpt", attn_implementation="eager").eval()
    tokens = random_tokens(2, 9)
    with torch.no_grad():
        expected = model.logits(model.hidden(rows_of(tokens))[0])
        torch.testing.assert_close(loaded(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_qwen_has_the_published_size_at_a_vocabulary_of_units() -> None:
    """Qwen2.5-0.5B's config.json, its tables cut to 502 rows: the size that Maimon et al. 2025 print."""
    values = {"model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864}
    values |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "rms_norm_eps": 1e-6}
    values |= {"max_position_embeddings": 32_768, "rope_theta": 1e6, "tie_word_embeddings": True, "hidden_act": "silu"}
    _, config = from_hf(values)
    with torch.device("meta"):
        weights = dict(LanguageModel(config).named_parameters())
    cut, weights = hf.with_vocabulary(config, weights, 502, "slice", seed=0, rope_theta=1e4)
    assert sum(x.numel() for x in weights.values()) == cost(cut, 1024).parameters == 358_347_904
    assert cost(config, 1024).parameters == 358_347_904 + (151_936 - 502) * 896
    assert (cut.tied, cut.bias, cut.mixer.rope_theta, weights["embedding.weight"].shape) == (
        True,
        "qkv",
        1e4,
        (502, 896),
    )


def test_bad_folders_are_one_clear_error(folders: dict[str, Path], tmp_path: Path) -> None:
    def changed(**values) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        config = {**json.loads((folders["llama"] / "config.json").read_text()), **values}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(load_file(folders["llama"] / "model.safetensors"), folder / "model.safetensors")
        return folder

    cases = {
        "want model_type in": {"model_type": "mamba"},
        "mlp_bias True has no form": {"mlp_bias": True},
        "type 'yarn'": {"rope_parameters": {"rope_type": "yarn"}},
        "the files lack model.layers.2": {"num_hidden_layers": 3},
        "tensors that a llama model does not have": {"num_hidden_layers": 1},
        "the config says": {"vocab_size": 99},
        "wants": {"num_key_value_heads": 4},
    }
    for message, values in cases.items():
        with pytest.raises(ValueError, match=message):
            hf.load(changed(**values))
    with pytest.raises(ValueError, match="config.json: missing"):
        hf.load(tmp_path / "nowhere")
    pickled = changed()
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled and will not be read"):
        hf.load(pickled)
    escaping = changed()
    index = {"weight_map": {"a": "../model.safetensors"}}
    (escaping / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="in this folder, got '../model"):
        hf.load(escaping)
    recurrent = build(TINY["lstm"], torch.float32)
    with pytest.raises(ValueError, match="no form for this model's positions, mixer.kind"):
        hf.save(tmp_path / "lstm", recurrent.config, dict(recurrent.named_parameters()), "opt")
    assert not (tmp_path / "lstm").exists()
