"""Languini Kitchen's own models as peers, where a checkout of it is importable: on PYTHONPATH, with munch, psutil and
sentencepiece beside it.

Its newest revision raises for LSTMs with recurrent gates; 1408f21 is the last that runs all three kinds. Its models are
used as they are, fp32 weights under autocast where ours are bf16, with its faster attention (use_flash).
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel

NEEDS = ("languini", "munch", "psutil", "sentencepiece")
PROJECTS = {"attention": "gpt", "qlstm": "lstm", "lstm": "lstm"}
STEPS = 512  # its MLP of an LSTM takes no other number
BLOCK_STEPS = 16  # its own for mini
Loss = Callable[[Batch], Tensor]


def loss_of(config: ModelConfig) -> Callable[[LanguageModel], tuple[Loss, list[Tensor]]] | None:
    """From a model, the mean loss of a batch of STEPS tokens a row and the parameters it is a function of; None where
    Languini Kitchen is not importable or has no such model."""
    mixer = config.mixer
    plain = (config.norm, config.mlp, config.tied, mixer.kv_heads) == ("layernorm", "gelu", False, None)
    kind = "attention" if mixer.kind == "attention" and config.positions == "learned" else mixer.kind
    if not plain or kind not in PROJECTS or any(importlib.util.find_spec(name) is None for name in NEEDS):
        return None
    if kind == "lstm" and not (mixer.shared_recurrent and "is_quasi" in _module(kind).DEFAULT_CONFIG):
        return None
    return partial(_build, kind)


@contextmanager
def _beside(names: tuple[str, ...]) -> Iterator[None]:
    """Modules that a project imports by plain names are forgotten afterwards: both projects have a `lib`."""
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _module(kind: str) -> ModuleType:
    """The project's model.py."""
    spec = importlib.util.find_spec("languini.projects")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / PROJECTS[kind]
    with _beside(("lib", "model")):
        for name in ("lib", "model"):
            described = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
            assert described is not None and described.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(described)
            described.loader.exec_module(sys.modules[name])
        return sys.modules["model"]


def _build(kind: str, model: LanguageModel) -> tuple[Loss, list[Tensor]]:
    config, module = model.config, _module(kind)
    weight = model.embedding.weight
    options = dict(vocab_size=config.vocab, n_layers=config.layers, h_dim=config.width, mlp_dim=config.ffn)
    options |= dict(head_dim=config.mixer.head_width, n_heads=config.mixer.heads, seq_len=STEPS, use_flash=True)
    options |= dict(non_quasi=kind == "lstm", is_quasi=kind != "lstm", block_length=BLOCK_STEPS)
    theirs = module.Model(config=SimpleNamespace(**options, device=weight.device.type)).to(weight.device)
    taken = theirs.load_state_dict(_renamed(kind, config, dict(model.named_parameters())), strict=False)
    frozen = [name for name in taken.missing_keys if not name.endswith("_mask") and not name.endswith(".mask")]
    parameters = dict(theirs.named_parameters())
    for name in frozen:  # the second bias of a gate: ours has one
        assert name.endswith("h.bias"), f"languini: {name} has no counterpart"
        parameters.pop(name).requires_grad_(False).fill_(config.mixer.forget_offset if "_Fh" in name else 0.0)
    assert not taken.unexpected_keys, f"languini: no place for {taken.unexpected_keys}"
    half = weight.dtype == torch.bfloat16

    def loss(batch: Batch) -> Tensor:
        state = theirs.get_init_state(len(batch.tokens), weight.device.type)
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=half):
            logits, _ = theirs(batch.tokens, state)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())

    return loss, list(parameters.values())


def _renamed(kind: str, config: ModelConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights in fp32 under its names."""
    found = {"input_embedding.weight": ours["embedding.weight"], "linear.weight": ours["head.weight"]}
    if kind == "attention":
        found["position_embedding.weight"] = ours["position.weight"][:STEPS]
    parts = {"ln1": "mixer_norm", "ln2": "mlp_norm", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
    parts["attn.linear_O" if kind == "attention" else "rnn.linear_post_head"] = "mixer.out"
    matrix = "attn.linear_{}" if kind == "attention" else "rnn.linear_{}x"
    joined, letters = ("mixer.qkv", "QKV") if kind == "attention" else ("mixer.gates", "IFZO")
    for end in ("weight", "bias"):
        found[f"ln_f.{end}"] = ours[f"norm.{end}"]
        for n in range(config.layers):
            found |= {f"layers.{n}.{its}.{end}": ours[f"blocks.{n}.{name}.{end}"] for its, name in parts.items()}
            pieces = ours[f"blocks.{n}.{joined}.{end}"].chunk(len(letters))
            found |= {f"layers.{n}.{matrix.format(a)}.{end}": x for a, x in zip(letters, pieces, strict=True)}
    if kind == "lstm":
        for n in range(config.layers):
            shared = ours[f"blocks.{n}.mixer.recurrent"][:, 0].mT
            found |= {f"layers.{n}.rnn.linear_{a}h.weight": x for a, x in zip(letters, shared, strict=True)}
    return {name: x.detach().float() for name, x in found.items()}
