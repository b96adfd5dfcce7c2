"""Whole training steps: forward, loss, backward, clipping and optimiser, ours beside the plain PyTorch form.

The plain forms are what one would write first: separate projections, SDPA, logits of the whole batch, autograd through
every step of a recurrence (the quasi-LSTM in its published block-matrix form), torch's AdamW. Learning rate 0 keeps the
weights, so that every call does the same work; what is compared with float64 is the loss and the gradient norm.
Letters: B rows, T steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hotplate.bench.harness import Case, Provider
from hotplate.bench.kernels.qlstm import block_matrix
from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.config import OptimizerConfig
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Precision, Step
from hotplate.train.throughput import random_batch

MODELS = ("gpt-mini", "qlstm-mini", "lstm-mini", "lstm-dense-mini", "lstm-diagonal-mini")
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
ADAMW = OptimizerConfig()
Forward = Callable[[LanguageModel, Tensor], Tensor]
Mix = Callable[[str, Mapping[str, Tensor], Tensor], Tensor]  # name, weights, x [B, T, D] -> mixed heads


@dataclass
class Work:
    """Models of one case that share their initial weights, and its batch."""

    config: ModelConfig
    batch: Batch
    precision: Precision
    steps: dict[str, Callable[[], Sequence[Tensor]]]


def _update(model: LanguageModel, batch: Batch, precision: Precision) -> Callable[[], Sequence[Tensor]]:
    """Our step: [loss, gradient norm]."""
    targets = batch.tokens.numel()
    step = Step(model, Optimizer(model, ADAMW), Ranks(0, 1, batch.tokens.device), precision, targets)

    def run() -> Sequence[Tensor]:
        update, _ = step([batch], [None], lr=0.0)
        return [update.loss_sum / targets, update.norm]

    return run


def _plain_update(model: LanguageModel, batch: Batch, forward: Forward) -> Callable[[], Sequence[Tensor]]:
    """The plain step: [loss, gradient norm]."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def run() -> Sequence[Tensor]:
        logits = forward(model, batch.tokens)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return [loss.detach(), norm]

    return run


def _plain(model: LanguageModel, tokens: Tensor, mix: Mix) -> Tensor:
    """Logits of a LayerNorm model with `mix` as its mixer, from the weights by name."""
    config, w = model.config, dict(model.named_parameters())
    x = w["embedding.weight"][tokens] * math.sqrt(config.width)
    if config.positions == "learned":
        x = x + w["position.weight"][: tokens.shape[1]]
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        normed = F.layer_norm(x, x.shape[-1:], w[f"{name}.mixer_norm.weight"], w[f"{name}.mixer_norm.bias"])
        x = x + F.linear(mix(f"{name}.mixer", w, normed), w[f"{name}.mixer.out.weight"], w[f"{name}.mixer.out.bias"])
        normed = F.layer_norm(x, x.shape[-1:], w[f"{name}.mlp_norm.weight"], w[f"{name}.mlp_norm.bias"])
        hidden = F.gelu(F.linear(normed, w[f"{name}.mlp.up.weight"], w[f"{name}.mlp.up.bias"]), approximate="tanh")
        x = x + F.linear(hidden, w[f"{name}.mlp.down.weight"], w[f"{name}.mlp.down.bias"])
    return F.linear(F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"]), w["head.weight"])


def plain_gpt(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] with SDPA's causal form."""
    heads, width = model.config.mixer.heads, model.config.mixer.head_width

    def mix(name: str, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
        projected = F.linear(x, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"]).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, width)).transpose(1, 2) for part in projected)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)

    return _plain(model, tokens, mix)


def plain_qlstm(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] with the published block-matrix recurrence."""
    mixer = model.config.mixer

    def mix(name: str, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
        gates = F.linear(x, w[f"{name}.gates.weight"], w[f"{name}.gates.bias"]).unflatten(-1, (4, mixer.width))
        offset = torch.tensor([0.0, mixer.forget_offset, 0.0, 0.0], device=x.device, dtype=x.dtype)
        return block_matrix(gates + offset[:, None])

    return _plain(model, tokens, mix)


def plain_lstm(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] with one step of the recurrence at a time, gradients by autograd."""
    mixer = model.config.mixer
    features = (mixer.heads, mixer.head_width) if mixer.kind == "lstm" else (mixer.width,)
    product = {"lstm": "bhk,ghkj->bghj", "lstm_dense": "bk,gkj->bgj", "lstm_diagonal": "bk,gk->bgk"}[mixer.kind]

    def mix(name: str, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
        gates = F.linear(x, w[f"{name}.gates.weight"], w[f"{name}.gates.bias"]).unflatten(-1, (4, *features))
        recurrent = w[f"{name}.recurrent"]
        h = c = x.new_zeros(x.shape[0], *features)
        outputs = []
        for step in gates.unbind(1):
            i, f, z, o = (step + torch.einsum(product, h, recurrent)).unbind(1)
            c = torch.sigmoid(f + mixer.forget_offset) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h.flatten(1))
        return torch.stack(outputs, 1)

    return _plain(model, tokens, mix)


PLAIN: dict[str, tuple[str, Forward]] = {
    "attention": ("plain SDPA", plain_gpt),
    "qlstm": ("block matrix", plain_qlstm),
    **{kind: ("step loop", plain_lstm) for kind in ("lstm", "lstm_dense", "lstm_diagonal")},
}


def cases(device: str, quick: bool) -> list[Case]:
    """Languini's mini models at 2 x 512 on a CPU in fp32, 32 x 512 on a GPU in bf16."""
    rows, window = (2, 32) if quick else (2, 512) if device == "cpu" else (32, 512)
    return [_case(name, rows, window, device, quick) for name in MODELS]


def _provider(name: str) -> Provider:
    return lambda work: work.steps[name]()


def _case(name: str, rows: int, window: int, device: str, quick: bool) -> Case:
    config = PRESETS[name]
    if quick:
        config = replace(config, layers=1, width=64, ffn=128, vocab=512)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    precision: Precision = "fp32" if device == "cpu" else "bf16"
    label, forward = PLAIN[config.mixer.kind]

    def prepare() -> Work:
        batch = replace(random_batch(config, rows, window, torch.device(device)), slots=None)
        ours, plain = (LanguageModel.build(config, 0, device, dtype) for _ in range(2))
        steps = {"hotplate": _update(ours, batch, precision), label: _plain_update(plain, batch, forward)}
        return Work(config, batch, precision, steps)

    def truth(work: Work) -> Sequence[Tensor]:
        model = LanguageModel.build(config, 0, device, dtype).double()
        output = model(work.batch)
        loss = output.loss_sum / output.weight_sum
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return [loss.detach(), torch.nn.utils.get_total_norm(gradients)]

    tokens = rows * window
    return Case(
        bench="step",
        name=f"{name} B{rows} T{window}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=truth,
        providers={provider: _provider(provider) for provider in ("hotplate", label)},
        tolerance=TOLERANCE[dtype],
        tokens=tokens,
        flops=cost(config, window).training_flops * tokens,
    )
