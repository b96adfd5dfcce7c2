"""Sampling text from a model, one token at a time, with a key/value cache or recurrent state.

Letters: B rows, T prompt steps, V vocabulary.
"""

import torch
from torch import Tensor

from hotplate.model.lm import LanguageModel
from hotplate.model.rows import Rows
from hotplate.model.state import State


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V] with those of ids that occurred (`seen`, bool [B, V]) made smaller: divided by `penalty` above 0,
    multiplied below. Source: Keskar et al. 2019 (CTRL), section 4.1.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Next tokens int64 [B] from logits [B, V]: the likeliest at temperature 0, else a draw among the top k."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        weakest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < weakest, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    repetition_penalty: float = 1.0,
    allowed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompt int64 [B, T] by `steps` tokens: int64 [B, steps].

    Recurrent models run in constant memory. Attention models keep at most `config.context` positions: when the cache
    is full, the last half of the window is read again, so that text of any length can be sampled.
    `repetition_penalty` counts every id of the prompt and of what is drawn; `allowed` bool [V]: no other id is drawn.
    ValueError for an empty prompt, negative temperature, top_k below 1, a penalty of 0 or less, or nothing allowed.
    """
    if prompt.dim() != 2 or prompt.shape[1] < 1:
        raise ValueError(
            f"generate: want a prompt [B, T >= 1], got {tuple(prompt.shape)}; start from the document symbol"
        )
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"generate: want temperature >= 0 and top_k >= 1, got {temperature} and {top_k}")
    config = model.config
    if repetition_penalty <= 0:
        raise ValueError(f"generate: want repetition_penalty > 0, got {repetition_penalty}")
    if allowed is not None and (allowed.shape != (config.vocab,) or not allowed.any()):
        raise ValueError(f"generate: want allowed bool [{config.vocab}] with an id in it, got {tuple(allowed.shape)}")
    occurred = torch.zeros(len(prompt), config.vocab, dtype=torch.bool, device=prompt.device).scatter_(1, prompt, True)
    limit = None if config.recurrent else config.context
    tokens = prompt
    state, seen = model.initial_state(prompt.shape[0], cache=True), 0
    fresh = tokens if limit is None else tokens[:, -limit:]
    for _ in range(steps):
        if limit is not None and seen + fresh.shape[1] > limit:
            state, seen = model.initial_state(prompt.shape[0], cache=True), 0
            fresh = tokens[:, -max(1, limit // 2) :]
        logits, state = _advance(model, fresh, seen, state)
        seen += fresh.shape[1]
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
        if repetition_penalty != 1:
            logits = penalise(logits, occurred, repetition_penalty)
        fresh = choose(logits, temperature, top_k, generator)[:, None]
        occurred.scatter_(1, fresh, True)
        tokens = torch.cat([tokens, fresh], dim=1)
    return tokens[:, prompt.shape[1] :]


def _advance(model: LanguageModel, fresh: Tensor, seen: int, state: State) -> tuple[Tensor, State]:
    """Logits [B, V] after the tokens `fresh` [B, T], which follow `seen` earlier positions."""
    positions = torch.arange(seen, seen + fresh.shape[1], device=fresh.device).expand(fresh.shape)
    features, state = model.features(fresh, positions, Rows(), state)
    return model.logits(features[:, -1]), state
