"""The language model: embedding, blocks, norm, head and loss.

Letters: B rows, T steps, D width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hotplate.kernels.attention import Layout, layout
from hotplate.kernels.cross_entropy import IGNORED, linear_cross_entropy, linear_losses, linear_scores
from hotplate.kernels.fingerprint import mark_compiled_code
from hotplate.kernels.rotary import rotation
from hotplate.model.axes import Embedding, Linear
from hotplate.model.batch import Batch
from hotplate.model.block import Block
from hotplate.model.config import ModelConfig
from hotplate.model.init import initialise
from hotplate.model.norm import Norm
from hotplate.model.rows import Forks, Rows
from hotplate.model.state import LayerState, State


class Output(NamedTuple):
    """What a forward pass gives the trainer: sums and counts, never means."""

    loss_sum: Tensor  # fp32 [], sum of weight * nll in nats
    weight_sum: Tensor  # fp32 [], sum of weights
    state: State
    scores: Tensor | None = None  # fp32 [N], log-probability of each of the batch's sequences, with gradient


class LanguageModel(nn.Module):
    """Any model of the family, by its config; without values until `initialise` or a checkpoint fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compiled = self.recompute = False
        self.embedding = Embedding("vocab", config.vocab, config.width)
        if config.positions == "learned":
            self.position = Embedding("position", config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = Norm(config)
        if not config.tied:
            self.head = Linear("residual", config.width, "vocab", (config.vocab,), bias=False)

    @staticmethod
    def build(
        config: ModelConfig, seed: int, device: torch.device | str = "cpu", dtype=torch.float32
    ) -> "LanguageModel":
        """A model with initial weights drawn from `seed`, made directly on `device`."""
        with torch.device("meta"):
            model = LanguageModel(config)
        model = model.to(dtype).to_empty(device=device)
        initialise(model, config, seed)
        return model

    def execute(self, *, compiled: bool = False, recompute: bool = False) -> None:
        """How blocks run while gradients are wanted, from now on: through torch.compile as one graph each (an error
        where one breaks), and keeping their inputs only, from which the backward pass computes the rest again."""
        self.compiled, self.recompute = compiled, recompute
        if compiled:
            mark_compiled_code()
            for block in self._blocks():
                block.compile(fullgraph=True, dynamic=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]."""
        return self.embedding.weight if self.config.tied else self.head.weight

    def forward(self, batch: Batch, state: State | None = None) -> Output:
        """Loss over the batch, and the state after it. `state` None starts every row from zero."""
        x, state = self.hidden(batch, state)
        if batch.sequences is not None:
            return self._sequence_scores(batch, x, state)
        weights = batch.weights
        with self._own_precision(x):
            sums = linear_cross_entropy(
                x.flatten(0, 1),
                self._head_for(x),
                batch.targets.flatten(),
                weights.flatten(),
                logit_scale=self.config.logit_multiplier,
            )
        return Output(sums.loss, sums.weight, state)

    def _sequence_scores(self, batch: Batch, x: Tensor, state: State) -> Output:
        """The batch's sequences one by one: losses of targets gathered by place, so that no order of sums is left to
        the device."""
        assert batch.sequences is not None
        targets = batch.targets.masked_fill(batch.weights == 0, IGNORED).flatten()
        with self._own_precision(x):
            losses = linear_losses(
                x.flatten(0, 1), self._head_for(x), targets, logit_scale=self.config.logit_multiplier
            )
        scores = -nn.functional.pad(losses, (0, 1))[batch.sequences].sum(1)
        return Output(losses.sum(), batch.weights.sum(), state, scores)

    @torch.no_grad()
    def scores(self, batch: Batch, state: State | None = None) -> tuple[Tensor, Tensor, State]:
        """Per target: nll in nats (fp32 [B, T]), how many logits beat it (int64 [B, T]); and the next state."""
        x, state = self.hidden(batch, state)
        with self._own_precision(x):
            nll, rank = linear_scores(
                x.flatten(0, 1), self._head_for(x), batch.targets.flatten(), logit_scale=self.config.logit_multiplier
            )
        return nll.view_as(batch.weights), rank.view_as(batch.targets), state

    @staticmethod
    def _own_precision(x: Tensor) -> torch.autocast:
        """The loss chooses its own precisions: autocast inside it would round the logits."""
        return torch.autocast(x.device.type, enabled=False)

    def _head_for(self, x: Tensor) -> Tensor:
        """The head in the dtype of x: a no-op unless autocast made x narrower than the weights."""
        return self.head_weight.to(x.dtype)

    def hidden(self, batch: Batch, state: State | None = None) -> tuple[Tensor, State]:
        """Normalised features [B, T, D] before the head, and the next state."""
        documents: Tensor | Layout | None = batch.cu_seqlens
        seen = batch.tokens if batch.spread is None else batch.spread
        if batch.tokens.is_cuda and self.config.mixer.kind == "attention":  # once for all layers
            documents = layout(batch.cu_seqlens, *seen.shape, device=batch.tokens.device)
        forks = None
        if batch.spread is not None and batch.gather is not None:
            if self.config.recurrent:
                raise ValueError("model: want batches without shared beginnings for recurrent layers")
            forks = Forks(batch.spread, batch.gather)
        rows = Rows(batch.resets, documents, forks=forks)
        return self.features(batch.tokens, batch.positions, rows, state)

    def features(self, tokens: Tensor, positions: Tensor, rows: Rows, state: State | None) -> tuple[Tensor, State]:
        """tokens, positions int64 [B, T] -> features [B, T, D]. ValueError when T exceeds learned positions."""
        config = self.config
        if config.positions == "learned" and tokens.shape[1] > config.context:
            raise ValueError(
                f"model: want windows of at most context = {config.context} steps for learned positions, "
                f"got {tokens.shape[1]}; raise model.context or shorten the window"
            )
        x = self.embedding(tokens)
        if config.token_multiplier != 1:
            x = x * config.token_multiplier
        if config.positions == "learned":
            x = x + self.position(positions)
        if torch.is_autocast_enabled(x.device.type):  # residual stream in the compute dtype
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if config.positions == "rotary":
            mixer = config.mixer
            turned = rotation(positions, mixer.head_width, mixer.rope_theta, mixer.rotary_width)
            rows = replace(rows, rotation=turned)
        if state is None:
            state = self.initial_state(tokens.shape[0])
        layers: list[LayerState] = []
        update = None  # what is still to be added to x
        training = torch.is_grad_enabled()
        for block, layer in zip(self._blocks(), state.layers, strict=True):
            if self.recompute and training:
                x, update, layer = checkpoint(
                    block, x, None, rows, layer, use_reentrant=False, preserve_rng_state=False
                )
                x, update = x + update, None  # or two tensors would be kept for every block
            elif self.compiled and not training:  # scoring and sampling see many shapes: as it is written
                x, update, layer = block.forward(x, update, rows, layer)
            else:
                x, update, layer = block(x, update, rows, layer)
            layers.append(layer)
        x = self.norm(x) if update is None else self.norm.add(x, update)[0]
        return x, State(tuple(layers))

    def logits(self, x: Tensor) -> Tensor:
        """Features [..., D] -> logits [..., V]."""
        logits = x @ self._head_for(x).t()
        return logits if self.config.logit_multiplier == 1 else logits * self.config.logit_multiplier

    def initial_state(self, rows: int, cache: bool = False) -> State:
        """Zero state for `rows` rows; with `cache`, attention layers keep keys and values (for sampling)."""
        weight = self.embedding.weight
        return State(tuple(b.mixer.initial_state(rows, weight.device, weight.dtype, cache) for b in self._blocks()))

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block
