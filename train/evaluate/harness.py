"""lm-eval-harness over hotplate's own model: its tasks through this model class and tokenizer, nothing exported.

Every text begins with the document symbol D, as in training. The harness's contract: Gao et al., lm-evaluation-harness,
`lm_eval.api.model.LM`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hotplate.model.batch import Batch
from hotplate.model.generate import generate
from hotplate.model.lm import LanguageModel
from hotplate.train.data.tokenizer import Tokenizer
from hotplate.train.errors import InputError

GENERATED = 256  # tokens, where a task does not say
Scored = tuple[list[int], int]  # tokens, the first of which is only read; how many at the end are scored


class HarnessModel(TemplateLM):
    """A model and its tokenizer, as the harness asks.

    Attention models see at most `window` tokens: of a long context the end. Recurrent models read everything, in
    pieces of `window` with their state carried on. `rows` requests are scored together.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, window: int, rows: int) -> None:
        super().__init__()
        self._model, self._own, self._window, self._rows = model, tokenizer, window, rows
        self._byte_lengths = tokenizer.byte_lengths()
        self._device = model.embedding.weight.device

    @property
    def eot_token_id(self) -> int:
        return self._own.eod

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._own.encode(string).tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of the joined text, cut where the context's bytes end.

        A token across the border belongs to the continuation, so the pair is always the text as the model was trained
        to read it; cutting after as many tokens as the context alone has, as other adapters do, is not.
        """
        whole = self.tok_encode(context + continuation)
        ends = np.cumsum(self._byte_lengths[whole])
        border = int(np.searchsorted(ends, len(context.encode()), side="right"))
        return whole[:border], whole[border:]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self.score(
            [(self._begun(context) + continuation, len(continuation)) for _, context, continuation in requests]
        )

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: attention in windows side by side, recurrence in one reading."""
        found = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            if self._model.config.recurrent:
                pieces: list[Scored] = [([self.eot_token_id, *ids], len(ids))]
            else:
                windows = get_rolling_token_windows(ids, self.eot_token_id, self._window, context_len=1)
                pieces = [(head + tail, len(tail)) for head, tail in map(make_disjoint_window, windows)]
            found.append(sum(likelihood for likelihood, _ in self.score(pieces)))
        return found

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations (or at `temperature`, if `do_sample`), cut before the first stop text or at D.

        ValueError for a way of sampling that is not supported.
        """
        return [self._continue(*request.args) for request in requests]

    @torch.no_grad()
    def score(self, texts: list[Scored]) -> list[tuple[float, bool]]:
        """Per text: log-likelihood in nats of its last tokens, and whether each is the likeliest one.

        ValueError when more tokens are to be scored than an attention model sees at once.
        """
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number][0]))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
        for start in range(0, len(order), self._rows):
            chosen = order[start : start + self._rows]
            for number, result in zip(chosen, self._score_rows([texts[n] for n in chosen]), strict=True):
                found[number] = result
        return found

    def _score_rows(self, texts: list[Scored]) -> list[tuple[float, bool]]:
        recurrent = self._model.config.recurrent
        if not recurrent:
            if (most := max(count for _, count in texts)) > self._window:
                raise ValueError(
                    f"a continuation of {most} tokens exceeds the window of {self._window}; raise --window"
                )
            texts = [(tokens[-self._window - 1 :], count) for tokens, count in texts]
        longest = max(len(tokens) for tokens, _ in texts) - 1
        ids = torch.full((len(texts), longest + 1), self.eot_token_id)
        weights = torch.zeros(len(texts), longest)
        for row, (tokens, count) in enumerate(texts):  # what pads a row comes after it, and nothing looks ahead
            ids[row, : len(tokens)] = torch.tensor(tokens)
            weights[row, len(tokens) - 1 - count : len(tokens) - 1] = 1
        likelihood = torch.zeros(len(texts), dtype=torch.float64)
        greedy = torch.ones(len(texts), dtype=torch.bool)
        state = None
        for start in range(0, longest, self._window):
            stop = min(longest, start + self._window)
            batch = self._batch(ids[:, start : stop + 1], weights[:, start:stop])
            nll, rank, left = self._model.scores(batch, state)
            state = left if recurrent else None
            kept = weights[:, start:stop] > 0
            likelihood -= torch.where(kept, nll.cpu().double(), 0.0).sum(1)
            greedy &= ((rank.cpu() == 0) | ~kept).all(1)
        return list(zip(likelihood.tolist(), greedy.tolist(), strict=True))

    def _batch(self, ids: torch.Tensor, weights: torch.Tensor) -> Batch:
        positions = torch.arange(weights.shape[1]).expand(weights.shape)
        lengths = torch.from_numpy(self._byte_lengths)[ids[:, 1:]] * (weights > 0)
        return Batch(ids[:, :-1], ids[:, 1:], weights, positions, lengths).to(self._device)

    def _continue(self, context: str, options: dict[str, Any]) -> str:
        options = dict(options)
        until = options.pop("until", [])
        stops = [until] if isinstance(until, str) else list(until)
        most = int(options.pop("max_gen_toks", GENERATED))
        sampled = bool(options.pop("do_sample", False))
        asked = float(options.pop("temperature", 1.0))
        temperature = asked if sampled else 0.0
        if options:
            raise ValueError(f"generate_until: want until, max_gen_toks, do_sample and temperature, got {options}")
        prompt = torch.tensor([self._begun(self.tok_encode(context))], device=self._device)
        generator = torch.Generator(self._device).manual_seed(0)
        drawn = generate(self._model, prompt, most, temperature=temperature, generator=generator)[0].tolist()
        kept = drawn[: drawn.index(self.eot_token_id)] if self.eot_token_id in drawn else drawn
        text = self._own.decode(kept)
        ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))]

    def _begun(self, ids: list[int]) -> list[int]:
        """The ids after D, with which an empty context comes already."""
        return ids if ids[:1] == [self.eot_token_id] else [self.eot_token_id, *ids]


def run_tasks(
    model: LanguageModel, tokenizer: Tokenizer, tasks: Sequence[str], window: int, rows: int, limit: int | None
) -> dict[str, dict[str, Any]]:
    """Task -> measure -> value, as the harness reports them; `tasks` are its names or paths of .yaml files.

    `limit`: documents per task. InputError for a task that does not exist.
    """
    own = [name for name in tasks if name.endswith((".yaml", ".yml"))]
    # The harness's own tasks are thousands of files: they are read only when one is asked for.
    manager = TaskManager(include_defaults=len(own) < len(tasks))
    try:
        found = simple_evaluate(
            model=HarnessModel(model, tokenizer, window, rows),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=0,
        )
    except (KeyError, FileNotFoundError) as error:
        raise InputError(f"--tasks {' '.join(tasks)}: {error}; give names of lm-eval's tasks or .yaml files") from error
    assert found is not None
    return found["results"]
