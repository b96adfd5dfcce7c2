"""What whole steps are compared with: plain PyTorch, the same compiled, and the packages and models that are installed.

The plain forms are what one would write first: separate projections, SDPA, logits of the whole batch, autograd through
every step of a recurrence (the quasi-LSTM in its published block-matrix form). A peer is a loss of the batch and the
parameters that it is a function of; weights are those of the given model.
Letters: B rows, T steps, D width, V vocabulary, K head width.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.bench import languini
from hotplate.bench.kernels.qlstm import block_matrix
from hotplate.model import hf
from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.hf.names import Family
from hotplate.model.lm import LanguageModel

Weights = Mapping[str, Tensor]
Mix = Callable[[ModelConfig, str, Weights, Tensor], Tensor]  # config, name, weights, x [B, T, D] -> mixed heads


@dataclass(frozen=True)
class Peer:
    """Mean loss of a batch as a function of parameters that only this peer owns."""

    loss: Callable[[Batch], Tensor]
    parameters: Sequence[Tensor]


Build = Callable[[LanguageModel], Peer]


def _norm(config: ModelConfig, w: Weights, name: str, x: Tensor) -> Tensor:
    if config.norm == "rmsnorm":
        return F.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], config.norm_eps)
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], config.norm_eps)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def logits(config: ModelConfig, mix: Mix, w: Weights, tokens: Tensor) -> Tensor:
    """[B, T, V] with `mix` as the mixer, from the weights by name."""
    x = w["embedding.weight"][tokens] * config.token_multiplier
    if config.positions == "learned":
        x = x + w["position.weight"][: tokens.shape[1]]
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        x = x + _linear(
            w, f"{name}.mixer.out", mix(config, f"{name}.mixer", w, _norm(config, w, f"{name}.mixer_norm", x))
        )
        hidden = _linear(w, f"{name}.mlp.up", _norm(config, w, f"{name}.mlp_norm", x))
        if config.mlp == "swiglu":
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        x = x + _linear(w, f"{name}.mlp.down", hidden)
    return F.linear(_norm(config, w, "norm", x), w["embedding.weight" if config.tied else "head.weight"])


def _turned(config: ModelConfig, x: Tensor) -> Tensor:
    """Rotary positions on x [B, heads, T, K], by halves of a head."""
    K, T = x.shape[-1], x.shape[-2]
    rates = config.mixer.rope_theta ** (-torch.arange(0, K, 2, device=x.device, dtype=torch.float32) / K)
    angles = torch.arange(T, device=x.device)[:, None] * rates
    cosine, sine = (part.repeat(1, 2).to(x.dtype) for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def attention(config: ModelConfig, name: str, w: Weights, x: Tensor) -> Tensor:
    """SDPA's causal form."""
    mixer = config.mixer
    parts = [n * mixer.head_width for n in (mixer.heads, mixer.groups, mixer.groups)]
    split = _linear(w, f"{name}.qkv", x).split(parts, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, mixer.head_width)).transpose(1, 2) for part in split)
    if config.positions == "rotary":
        q, k = _turned(config, q), _turned(config, k)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=mixer.groups != mixer.heads)
    return y.transpose(1, 2).flatten(-2)


def qlstm(config: ModelConfig, name: str, w: Weights, x: Tensor) -> Tensor:
    """The published block-matrix recurrence."""
    gates = _linear(w, f"{name}.gates", x).unflatten(-1, (4, config.mixer.width))
    offset = torch.tensor([0.0, config.mixer.forget_offset, 0.0, 0.0], device=x.device, dtype=x.dtype)
    return block_matrix(gates + offset[:, None])


def step_loop(config: ModelConfig, name: str, w: Weights, x: Tensor) -> Tensor:
    """One step of the recurrence at a time, gradients by autograd."""
    mixer = config.mixer
    features = (mixer.heads, mixer.head_width) if mixer.kind == "lstm" else (mixer.width,)
    product = {"lstm": "bhk,ghkj->bghj", "lstm_dense": "bk,gkj->bgj", "lstm_diagonal": "bk,gk->bgk"}[mixer.kind]
    gates, recurrent = _linear(w, f"{name}.gates", x).unflatten(-1, (4, *features)), w[f"{name}.recurrent"]
    h = c = x.new_zeros(x.shape[0], *features)
    outputs = []
    for step in gates.unbind(1):
        i, f, z, o = (step + torch.einsum(product, h, recurrent)).unbind(1)
        c = torch.sigmoid(f + mixer.forget_offset) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h.flatten(1))
    return torch.stack(outputs, 1)


def torch_lstm(config: ModelConfig, name: str, w: Weights, x: Tensor) -> Tensor:
    """The operator of torch.nn.LSTM, gates (i, f, g, o): input matrix within, the offset in its second bias."""
    states = x.new_zeros(2, 1, len(x), config.mixer.width).unbind(0)
    offset = x.new_tensor([0.0, config.mixer.forget_offset, 0.0, 0.0]).repeat_interleave(config.mixer.width)
    matrices = [w[f"{name}.gates.weight"], w[f"{name}.recurrent"].mT.flatten(0, 1)]
    biases = [w[f"{name}.gates.bias"], offset]
    return torch.lstm(x, states, [*matrices, *biases], True, 1, 0.0, True, False, True)[0]


def plain(mix: Mix, compiled: bool, model: LanguageModel) -> Peer:
    """The model's own weights under the plain form."""
    config = model.config

    def loss(w: Weights, tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits(config, mix, w, tokens).flatten(0, 1).float(), targets.flatten())

    run = torch.compile(loss, fullgraph=True, dynamic=False) if compiled else loss
    weights = dict(model.named_parameters())
    return Peer(lambda batch: run(weights, batch.tokens, batch.targets), list(weights.values()))


def hugging_face(family: Family, liger: bool, model: LanguageModel) -> Peer:
    """`transformers` with the model's weights, by way of a checkpoint folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    parameter = next(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        hf.save(Path(folder) / "model", model.config, dict(model.named_parameters()), family)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=parameter.dtype)
    theirs = loaded.to(parameter.device).train()
    if liger:
        return _liger(family, theirs)

    def loss(batch: Batch) -> Tensor:
        found = theirs(input_ids=batch.tokens, use_cache=False).logits
        return F.cross_entropy(found.flatten(0, 1).float(), batch.targets.flatten())

    return Peer(loss, list(theirs.parameters()))


def _liger(family: Family, theirs: torch.nn.Module) -> Peer:
    """Without Liger's rotary kernel, which would replace that of every model in the process."""
    patch = importlib.import_module("liger_kernel.transformers")
    getattr(patch, f"apply_liger_kernel_to_{family}")(rope=False, fused_linear_cross_entropy=True, model=theirs)

    def loss(batch: Batch) -> Tensor:
        return theirs(input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets, use_cache=False).loss

    return Peer(loss, list(theirs.parameters()))


def peers(config: ModelConfig, device: str, quick: bool) -> dict[str, Build]:
    """What can run here on this model, the plain form first."""
    kind = config.mixer.kind
    label, mix = {"attention": ("plain SDPA", attention), "qlstm": ("block matrix", qlstm)}.get(
        kind, ("step loop", step_loop)
    )
    found: dict[str, Build] = {label: partial(plain, mix, False)}
    if kind == "lstm_dense":
        found["torch.nn.LSTM"] = partial(plain, torch_lstm, False)
    if not quick and (build := languini.loss_of(config)) is not None:
        found["Languini Kitchen"] = lambda model: Peer(*build(model))
    if kind != "attention":
        return found  # a compiled loop unrolls into hundreds of thousands of operations
    if not quick:  # compiling takes longer than all small shapes together
        found["torch.compile"] = partial(plain, mix, True)
    if config.positions == "rotary" and importlib.util.find_spec("transformers") is not None:
        family: Family = "qwen2" if config.bias == "qkv" else "llama"
        found["transformers"] = partial(hugging_face, family, False)
        if device == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
            found["Liger"] = partial(hugging_face, family, True)
    return found
