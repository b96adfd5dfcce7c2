"""Whole training steps: forward, loss, backward, clipping and optimiser, ours beside its peers (peers.py).

Learning rate 0 keeps the weights, so that every call does the same work; what is compared with float64 is the loss and
the gradient norm. On a CPU the first peer of each model runs a second time with memory kept, as hotplate does
(harness.py). Letters: B rows, T steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from hotplate.bench import languini
from hotplate.bench.harness import COMPILED, KEPT, Case, Provider
from hotplate.bench.peers import Build, Peer, peers
from hotplate.model.batch import Batch
from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.config import OptimizerConfig, TrainConfig
from hotplate.train.heap import adjustable
from hotplate.train.optimizer import Optimizer
from hotplate.train.ranks import Ranks
from hotplate.train.step import Precision, Step, resolve_precision
from hotplate.train.throughput import random_batch

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
ADAMW = OptimizerConfig()
# Bytes that AdamW must move per parameter: gradient read; weight and two moments read and written. A bf16 weight's
# gradient is 2 bytes less, and the weight is written beside its fp32 master.
OPTIMIZER_BYTES = 28
HALVES = ("gpt-mini", "qlstm-mini", "lstm-mini", "decoder-micro")  # on a CPU also in bf16
# The published LSTM: one recurrent matrix for all heads.
SHARED = replace(PRESETS["lstm-mini"], mixer=replace(PRESETS["lstm-mini"].mixer, shared_recurrent=True))
# Languini's models: on a CPU the smallest; on a GPU GPT-small and its like, in the order of what one asks first.
LANGUINI = ("gpt-mini", "qlstm-mini", "lstm-mini", "lstm-dense-mini", "lstm-diagonal-mini")
LANGUINI_SMALL = ("qlstm-small", "lstm-small", "lstm-dense-small", "lstm-diagonal-small")
# Rows of which a float64 truth is made at once: attention's holds all scores, a recurrence's needs as many launches
# for few rows as for all.
TRUE_ROWS = {"attention": 4}
# A language model over audio codes: the 0.5B decoder's blocks, a small vocabulary, windows of 1024.
SPEECH = replace(PRESETS["decoder-0.5b"], vocab=502, context=1024)
# Of decoder-360m without the norms of query and key heads, which Llama has no form for.
DECODER = replace(PRESETS["decoder-360m"], mixer=replace(PRESETS["decoder-360m"].mixer, qk_norm=False))


@dataclass(frozen=True)
class Shape:
    """A model, rows and steps of its batch, and the precision of a step."""

    name: str
    config: ModelConfig
    B: int
    T: int
    precision: Precision = "bf16"


def shapes(device: str, quick: bool) -> list[Shape]:
    """Languini's models, mini at 2 x 512 on a CPU, small at 32 x 512 on a GPU; a decoder; the speech shape, on a
    CPU two layers of it.

    In bf16 on a GPU, in fp32 on a CPU; there the first also in bf16 where that is the trainer's choice.
    """
    if device == "cuda":
        found = [Shape("gpt-small", PRESETS["gpt-small"], 32, 512)]
        found += [Shape("decoder-360m without head norms", DECODER, 16, 1024)]
        found += [Shape(name, PRESETS[name], 32, 512) for name in LANGUINI_SMALL]
        found += [Shape("speech", SPEECH, 16, 1024)]
    else:
        found = [Shape(name, PRESETS[name], 2, 512) for name in LANGUINI]
        if languini.loss_of(SHARED) is not None:
            found.append(Shape("lstm-mini with one matrix", SHARED, 2, 512))
        found += [Shape("decoder-micro", PRESETS["decoder-micro"], 2, 512)]
        found += [Shape("speech, 2 layers", replace(SPEECH, layers=2), 1, 1024)]
        halves = resolve_precision(TrainConfig(), torch.device(device)) == "bf16"
        again = [shape for shape in found if halves and shape.name in HALVES]
        found = [replace(shape, precision="fp32") for shape in found] + again
    return [_small(shape) for shape in found] if quick else found


def _small(shape: Shape) -> Shape:
    mixer = shape.config.mixer
    if mixer.kv_heads is not None:
        mixer = replace(mixer, heads=4, kv_heads=2, head_width=16)
    return replace(shape, config=replace(shape.config, layers=1, width=64, ffn=128, vocab=502, mixer=mixer), B=2, T=32)


Update = Callable[[], Sequence[Tensor]]


@dataclass
class Work:
    """Steps of one case over models that share their initial weights; each is built when first called."""

    batch: Batch
    makers: Mapping[str, Callable[[], Update]]
    updates: dict[str, Update] = field(default_factory=dict)

    def update(self, name: str) -> Sequence[Tensor]:
        if name not in self.updates:
            self.updates[name] = self.makers[name]()
        return self.updates[name]()


def _update(model: LanguageModel, batch: Batch, precision: Precision, compiled: bool = False) -> Update:
    """Our step: [loss, gradient norm]."""
    model.execute(compiled=compiled)
    targets = batch.tokens.numel()
    step = Step(model, Optimizer(model, ADAMW), Ranks(0, 1, batch.tokens.device), precision, targets)

    def run() -> Sequence[Tensor]:
        update, _ = step([batch], [None], lr=0.0)
        return [update.loss_sum / targets, update.norm]

    return run


def _peer_update(peer: Peer, batch: Batch) -> Update:
    """A peer's step, with torch's AdamW: [loss, gradient norm]."""
    optimizer = torch.optim.AdamW(peer.parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def run() -> Sequence[Tensor]:
        loss = peer.loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters, ADAMW.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return [loss.detach(), norm]

    return run


def cases(device: str, quick: bool) -> list[Case]:
    """A case per shape."""
    return [_case(shape, device, quick) for shape in shapes(device, quick)]


def _provider(name: str) -> Provider:
    return lambda work: work.update(name)


def _case(shape: Shape, device: str, quick: bool) -> Case:
    config = shape.config
    dtype = torch.float32 if shape.precision == "fp32" else torch.bfloat16
    others = peers(config, device, quick)
    forms = {"hotplate": False} | ({COMPILED: True} if device == "cuda" and not quick else {})
    kept = list(others)[:1] if device == "cpu" and adjustable() else []

    def build() -> LanguageModel:
        return LanguageModel.build(config, 0, device, dtype)

    def prepare() -> Work:
        batch = replace(random_batch(config, shape.B, shape.T, torch.device(device)), slots=None)
        makers = {name: partial(ours, compiled, batch) for name, compiled in forms.items()}
        makers |= {name: partial(peer, make, batch) for name, make in others.items()}
        return Work(batch, makers | {name + KEPT: makers[name] for name in kept})

    def ours(compiled: bool, batch: Batch) -> Update:
        return _update(build(), batch, shape.precision, compiled)

    def peer(make: Build, batch: Batch) -> Update:
        return _peer_update(make(build()), batch)

    def truth(work: Work) -> Sequence[Tensor]:
        model, losses = build().double(), []
        for batch in work.batch.by_rows(TRUE_ROWS.get(config.mixer.kind, shape.B)):
            losses.append(model(batch).loss_sum / work.batch.tokens.numel())
            losses[-1].backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(gradients) == len(list(model.parameters())), "every parameter has a gradient"
        return [torch.stack(losses).sum().detach(), torch.nn.utils.get_total_norm(gradients)]

    tokens, costs = shape.B * shape.T, cost(config, shape.T)
    return Case(
        bench="step",
        name=f"{shape.name} B{shape.B} T{shape.T}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=truth,
        providers={name: _provider(name) for name in (*forms, *others, *(name + KEPT for name in kept))},
        tolerance=TOLERANCE[dtype],
        tokens=tokens,
        moved_bytes=costs.parameters * OPTIMIZER_BYTES,
        flops=costs.training_flops * tokens,
        whole=True,
    )
