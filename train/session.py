"""One process's part in a run: model, optimiser and the run folder's files, from the first update to the last."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from hotplate.kernels import native
from hotplate.model.config import ModelConfig
from hotplate.model.cost import cost, device_peak_flops
from hotplate.model.growth.grow import grow_recurrent_state
from hotplate.model.lm import LanguageModel
from hotplate.model.state import State
from hotplate.train import checkpoint, console
from hotplate.train.budget import Goodput, Plan
from hotplate.train.checkpoint import Checkpoint
from hotplate.train.config import TrainConfig
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.loader import Loader
from hotplate.train.data.mixed import MixedTokenizer
from hotplate.train.data.pairs import PairSource
from hotplate.train.engines import DDP, build
from hotplate.train.engines.base import weights_type
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.evaluate.perplexity import evaluate_split
from hotplate.train.growing import Part, grow_all, grown_model, growth_factors, parts
from hotplate.train.guard import Saves, StopSignal, keep_memory
from hotplate.train.inputs import Source, describe_data, load_start
from hotplate.train.loop import Course, Hooks, Oddity, Progress, position, train
from hotplate.train.oddities import keep_batch
from hotplate.train.plan import Layout, describe, out_of_memory
from hotplate.train.preference import PreferenceLoss
from hotplate.train.ranks import Ranks
from hotplate.train.reference import REFERENCE, load_reference, reference_scores, save_reference
from hotplate.train.saving import Saver
from hotplate.train.schedule import factor, factor_after_growth
from hotplate.train.settings import to_table
from hotplate.train.sinks import JsonLines, Sink, Sinks, TensorBoard, WandB
from hotplate.train.spikes import LossWatch
from hotplate.train.step import Counted, Objective, Precision, Retreat, Step
from hotplate.train.summary import finish
from hotplate.train.tensor_files import Piece
from hotplate.train.watchdog import Watchdog

WATCH = "watch.loss"  # the loss statistics in a checkpoint's state
PREEMPTED = "preempted.json"  # in the run folder after an orderly stop on a signal


class Session:
    """One process's part in a run: owns model, optimiser and the run folder's files."""

    def __init__(
        self,
        config: TrainConfig,
        preset: str,
        ranks: Ranks,
        precision: Precision,
        layout: Layout,
        plan: Plan,
        dataset: Dataset,
        folder: Path,
        goodput: Goodput,
        uncompiled: str | None = None,
    ) -> None:
        """`uncompiled`: why blocks are not compiled although that was asked for."""
        self.config, self.preset, self.ranks, self.precision = config, preset, ranks, precision
        self.uncompiled = uncompiled
        self.layout, self.plan, self.dataset, self.folder, self.goodput = (
            layout,
            plan,
            dataset,
            folder,
            goodput,
        )
        self.parts = parts(config.growth, plan)
        self.records = Sinks([], console.complain)
        guard = config.guard
        self.watch = LossWatch(guard.spike, guard.spike_sigmas, guard.spike_window, ranks.device)
        saves = Saves(guard.save_attempts, guard.save_failures, console.complain)
        self.saver = Saver(folder / "checkpoints", config.run.keep, ranks, saves)
        torch.manual_seed(config.seed)
        self._build(config.model)

    def _build(self, model: ModelConfig) -> None:
        """A model with initial weights, and its optimiser."""
        self.model, self.engine = model, build(model, self.config, self.ranks, self.precision)

    def train(self, sources: Sequence[Source], saved: Checkpoint | None, watchdog: Watchdog) -> int:
        """From the start or from `saved` to the end of the budget, or to a signal."""
        progress = self._restore(saved)
        watchdog.follow(progress)
        stop = StopSignal()
        if self.ranks.main:
            self._open_folder(saved, sources[0])
        if self.uncompiled is not None:
            self._note(progress, compiled=False, compile_failure=self.uncompiled)
        if isinstance(source := sources[0], PairSource):
            with self.goodput.during("reference"):
                source.reference = self._reference(source)
        done = True
        try:
            for part in self.parts:
                if done and progress.step < part.until:
                    done = self._train_part(part, sources[part.source], progress, stop)
            with self.goodput.during("save"):
                self.saver.wait()
            if done:
                execution = {
                    "compiled": self.config.execution.compile,
                    "compile_failure": self.uncompiled,
                    "micro_batch": self.layout.micro_rows,
                }
                whole, config = self.engine.whole(), self.config
                finish(whole, self.dataset, config, self.plan, self.ranks, self.goodput, self.folder, execution)
            elif self.ranks.main:
                note = {"signal": stop.name, "step": progress.step}
                (self.folder / PREEMPTED).write_text(json.dumps(note) + "\n", encoding="utf-8")
                console.say(
                    f"stopped by {stop.name or 'another rank'} after step {progress.step}, saved in {self.folder}; "
                    "go on with the same command and --run.resume auto"
                )
        finally:
            stop.restore()
            self.records.close()
            self.saver.wait()
        return 0

    def _train_part(self, part: Part, source: Source, progress: Progress, stop: StopSignal) -> bool:
        """Updates up to the end of the part; False when a signal asked to stop before."""
        config, ranks, plan = self.config, self.ranks, self.plan
        if part.grown and progress.step == plan.grows_after:
            with self.goodput.during("grow"):
                self._grow(progress)
        targets = plan.tokens_per_step
        objective: Objective | None = None
        if isinstance(tokenizer := self.dataset.tokenizer, MixedTokenizer):
            objective = Counted("speech_share", *tokenizer.range_of("speech"))
        if isinstance(source, PairSource):
            targets = max(1, round(len(source.pairs) * source.rows / source.plan_rows))
            objective = PreferenceLoss(config.preference)
        engine = self.engine
        retreat = None
        if isinstance(engine, DDP) and config.guard.out_of_memory == "halve":
            retreat = Retreat(engine.optimizer.forget, self._keep_memory)
        step = Step(
            engine.module,
            engine.optimizer,
            ranks,
            self.precision,
            targets,
            objective,
            self.watch,
            engine.exchange,
            retreat,
        )
        course = Course(
            config=config,
            plan=plan,
            costs=cost(self.model, config.data.window),
            peak_flops=device_peak_flops(ranks.device),
            until=part.until,
            rate=self._grown_rate if part.grown else self._rate,
        )
        hooks = Hooks(
            report=self._report,
            odd=lambda found: self._keep_odd(found, source),
            smaller=self._halve,
            validate=self._validate,
            save=self._save,
        )
        loader = Loader(
            source,
            rows=self.layout.rows,
            micro_batches=self.layout.micro_batches,
            device=ranks.device,
            start_step=progress.step,
        )
        try:
            with loader:
                return train(course, step, loader, progress, ranks, self.goodput, stop, hooks)
        except torch.OutOfMemoryError as error:
            self._keep_memory()
            raise InputError(self._too_large(str(error).splitlines()[0])) from error

    def _too_large(self, why: str) -> str:
        return out_of_memory(why, self.config, self.model, self.precision, self.layout)

    def _keep_memory(self) -> None:
        """Say where a snapshot of this rank's full memory is."""
        if (path := keep_memory(self.folder / f"memory-{self.ranks.rank:05d}.pickle", self.ranks.device)) is not None:
            console.complain(f"what fills the memory of {self.ranks.device}: {path} (for pytorch.org/memory_viz)")

    def _halve(self, why: str, progress: Progress) -> int:
        """Half the micro-batch and twice the accumulation, on every rank alike. InputError when it is one row."""
        if (smaller := self.layout.smaller()) is None:
            raise InputError(self._too_large(why))
        self.layout = smaller
        if all(part is not None for part in progress.states):
            progress.states = self._cut(State.concatenate([part for part in progress.states if part is not None]))
        else:
            progress.states = [None] * smaller.micro_batches
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.ranks.main:
            rows = smaller.micro_rows
            console.complain(
                f"warning: update {progress.step + 1}: out of memory: {why}; once more, and from now on, with "
                f"micro-batches of {rows} rows, {smaller.micro_batches} an update; --micro-batch {rows} begins so"
            )
        self._note(progress, micro_batch=smaller.micro_rows, out_of_memory=why)
        return smaller.micro_batches

    def _note(self, progress: Progress, **facts: Any) -> None:
        """A record of something that happened where the run stands."""
        if self.ranks.main:
            self.records.write({**position(progress, self.plan), **facts})

    def _reference(self, source: PairSource) -> np.ndarray:
        """Scores of every pair under the model that the run started from: computed once, kept in the run folder."""
        path = self.folder / REFERENCE
        if self.ranks.main and not path.exists():
            assert self.config.run.start is not None
            weights, _ = load_start(Path(self.config.run.start), self.config, self.dataset)
            dtype = weights_type(self.precision)
            model = LanguageModel.build(self.model, self.config.seed, self.ranks.device, dtype)
            model.load_state_dict(dict(weights))
            scores = reference_scores(model, source, self.layout.micro_rows)
            save_reference(path, scores, source.fingerprint)
        self.ranks.barrier()
        return load_reference(path, source.fingerprint)

    def _rate(self, step: int) -> float:
        return factor(self.config.schedule, step, self.plan)

    def _grown_rate(self, step: int) -> float:
        return factor_after_growth(self.config.schedule, self.config.growth, step, self.plan)

    def _grow(self, progress: Progress) -> None:
        """The large model in place of the small one, on every rank alike; the small one's last checkpoint stays until
        the large one's first is complete."""
        config, small = self.config, self.model
        weights, state = grow_all(config, *self.engine.everything())
        self._build(grown_model(config))
        self.engine.load(weights, state, partly=True)
        factors = growth_factors(config)
        progress.states = [
            None if carried is None else grow_recurrent_state(carried, small, factors, config.growth.depth)
            for carried in progress.states
        ]
        if self.ranks.main:
            before, after = (cost(model, config.data.window).parameters for model in (small, self.model))
            console.say(f"grown       {before:,} to {after:,} parameters after step {progress.step}")

    def _open_folder(self, saved: Checkpoint | None, source: Source) -> None:
        """Write what the run is, open its sinks, and say where it is."""
        table = {"preset": self.preset, **to_table(self.config)}
        (self.folder / "config.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
        facts = {
            **environment(self.ranks.device),
            "plan": dataclasses.asdict(self.plan),
            "world": self.ranks.world,
        }
        (self.folder / "environment.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (self.folder / PREEMPTED).unlink(missing_ok=True)
        since = 0 if saved is None else int(saved.trainer["step"])  # records of steps that will be done again go
        sinks: list[Sink] = [JsonLines(self.folder / "metrics.jsonl", since)]
        for name in self.config.run.sinks:
            sinks.append(TensorBoard(self.folder) if name == "tensorboard" else WandB(self.folder, table))
        self.records = Sinks(sinks, console.complain)
        lines = describe(self.config, self.ranks, self.precision, self.layout, self.plan, self.folder)
        console.say("\n".join([f"run folder  {self.folder}", *lines, describe_data(source, self.plan)]))
        if self.config.model.recurrent and self.ranks.device.type == "cpu":
            console.say(f"kernels     {native.status()}")
        if saved is not None:
            console.say(f"resumed     {saved.path} at step {since}")

    def _restore(self, saved: Checkpoint | None) -> Progress:
        """Model, optimiser, generators and carried state as they were; fresh ones when there is no checkpoint."""
        progress = Progress(states=[None] * self.layout.micro_batches)
        if saved is None:
            if self.config.run.start is not None:
                weights, state = load_start(Path(self.config.run.start), self.config, self.dataset)
                self.engine.load(weights, state, partly=True)
            return progress
        if self.plan.grows_after is not None and int(saved.trainer["step"]) > self.plan.grows_after:
            self._build(grown_model(self.config))
        self.engine.load(saved.weights, saved.optimizer)
        checkpoint.restore_random_state(saved.state, self.ranks.device)
        if WATCH in saved.state:
            self.watch.load(saved.state[WATCH])
        progress.step, progress.skipped = int(saved.trainer["step"]), int(saved.trainer["skipped"])
        if carried := self._carried(saved):
            progress.states = carried
        return progress

    def _carried(self, saved: Checkpoint) -> list[State | None]:
        """The state of this rank's rows, by micro-batch; empty when the model carries none."""
        mine, device = self.layout.rows, self.ranks.device
        rows = {}
        for name, entry in saved.state.entries.items():
            if name.startswith("row."):
                size = math.prod(entry.layout.shape[1:])
                found = saved.state.part(name, mine.start * size, mine.stop * size)
                rows[name[4:]] = found.view(len(mine), *entry.layout.shape[1:]).to(device)
        if not rows:
            return []
        return list(self._cut(State.from_dict(rows, self.model.layers)))

    def _cut(self, carried: State) -> list[State | None]:
        """The state of this rank's rows, by micro-batch."""
        size, device = self.layout.micro_rows, self.ranks.device
        starts = range(0, len(self.layout.rows), size)
        return [carried.select(torch.arange(i, i + size, device=device)) for i in starts]

    def _save(self, progress: Progress) -> None:
        """Begin to write a checkpoint of everything; what fails is reported, and training goes on with older ones."""
        state: dict[str, Piece] = {}
        if self.ranks.main:
            alike = {**checkpoint.random_state(self.ranks.device), WATCH: self.watch.statistics}
            state = {name: Piece.whole(x) for name, x in alike.items()}
        if all(part is not None for part in progress.states):
            mine = State.concatenate([part for part in progress.states if part is not None])
            for name, x in mine.to_dict().items():
                start = self.layout.rows.start * math.prod(x.shape[1:])
                state[f"row.{name}"] = Piece(x, (self.config.batch, *x.shape[1:]), start)
        trainer = {
            "step": progress.step,
            "tokens": progress.step * self.plan.tokens_per_step,
            "skipped": progress.skipped,
            "plan": dataclasses.asdict(self.plan),
            "paid_seconds": self.goodput.snapshot(),
            "down_seconds": self.goodput.down,
            "config": to_table(self.config),
            "model": to_table(self.model),
            "data": self.dataset.fingerprint,
            "tokenizer": self.dataset.tokenizer.fingerprint,
        }
        parts = {**self.engine.pieces(), "state": state}
        self.saver.save(progress.step, parts, trainer)

    def _keep_odd(self, found: Sequence[Oddity], source: Source) -> None:
        """Say which updates were odd and keep their batches."""
        if not self.ranks.main:
            return
        for oddity in found:
            console.complain(keep_batch(self.folder, oddity, source, self.config.batch))

    def _validate(self) -> Mapping[str, float]:
        """The main rank's measures, on every rank: the others wait, and compute none of them again."""
        model = self.engine.whole()
        found = self.ranks.share(None if model is None else self._measure(model))
        assert isinstance(found, dict)
        return found

    def _measure(self, model: LanguageModel) -> dict[str, float]:
        evaluation, data = self.config.evaluation, self.config.data
        found = evaluate_split(
            model,
            self.dataset,
            "validation",
            window=data.window,
            rows=evaluation.rows,
            resets=data.mode == "packed" or data.document_resets,
            limit=evaluation.tokens,
        )
        return {
            "validation_loss": found.loss,
            "validation_normalised_perplexity": found.normalised_perplexity,
        }

    def _report(self, record: dict[str, Any]) -> None:
        if not self.ranks.main:
            return
        self.records.write(record)
        if "loss" in record:
            console.say(console.progress_line(record, self.plan))
        if "validation_loss" in record:
            value = record["validation_normalised_perplexity"]
            console.say(
                f"step {record['step']}/{self.plan.steps} validation loss {record['validation_loss']:.3f}, "
                f"normalised perplexity {value:.4f} per byte"
            )
