"""A training run from config to summary: each part is made once here and handed to the loop."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from hotplate.kernels import native
from hotplate.model.cost import cost, device_peak_flops
from hotplate.model.lm import LanguageModel
from hotplate.model.state import State
from hotplate.train import checkpoint, console, resume
from hotplate.train.budget import Goodput, Plan
from hotplate.train.checkpoint import Checkpoint
from hotplate.train.config import TrainConfig
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.loader import Loader
from hotplate.train.data.prepare import open_data
from hotplate.train.data.sources import PackedSource
from hotplate.train.data.streams import StreamSource
from hotplate.train.environment import environment
from hotplate.train.errors import InputError
from hotplate.train.evaluate.perplexity import evaluate_split
from hotplate.train.guard import RunLock, StopSignal
from hotplate.train.loop import Course, Hooks, Progress, train
from hotplate.train.optimizer import Optimizer
from hotplate.train.plan import Layout, check_disk, describe, lay_out, plan_run
from hotplate.train.ranks import Ranks, start
from hotplate.train.settings import to_table
from hotplate.train.sinks import JsonLines, Sink, Sinks, TensorBoard, WandB
from hotplate.train.step import Precision, Step, resolve_precision
from hotplate.train.summary import finish

PREEMPTED = "preempted.json"  # in the run folder after an orderly stop on a signal


def run(config: TrainConfig, preset: str) -> int:
    """Train; 0 when done or stopped by a signal. InputError for what the user can mend."""
    goodput = Goodput()
    ranks = start(config)
    try:
        return _run(config, preset, ranks, goodput)
    finally:
        ranks.close()


def _run(config: TrainConfig, preset: str, ranks: Ranks, goodput: Goodput) -> int:
    precision, layout = resolve_precision(config, ranks.device), lay_out(config, ranks)
    folder = Path(config.run.folder or f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path(str(ranks.share(str(folder))))
    with goodput.during("data"):
        verify = config.data.verify if ranks.main else "header"  # one rank's hashing is enough
        dataset = open_data(config.data.source, vocab=config.model.vocab, verify=verify)
        source = build_source(config, dataset)
    if config.dry_run:
        plan = plan_run(config, ranks, precision, layout, always_measure=True)
        if ranks.main:
            lines = describe(config, ranks, precision, layout, plan, folder)
            console.say("\n".join([*lines, describe_data(source, plan)]))
        return 0
    lock = RunLock(folder) if ranks.main else None
    try:
        saved = _find_checkpoint(config, folder, ranks)
        if saved is None:
            check_disk(folder, config, cost(config.model, config.data.window), precision)
            with goodput.during("measure"):
                plan = plan_run(config, ranks, precision, layout)
        else:
            plan = _resumed_plan(saved, config, dataset, ranks, precision, layout)
            goodput.add(saved.trainer["paid_seconds"])
        session = Session(config, preset, ranks, precision, layout, plan, dataset, folder, goodput)
        return session.train(source, saved)
    finally:
        if lock is not None:
            lock.release()


def build_source(config: TrainConfig, dataset: Dataset) -> PackedSource | StreamSource:
    """Rows of the training split as the config asks. InputError when the model cannot hold the data's token ids."""
    if dataset.vocab > config.model.vocab:
        raise InputError(
            f"{config.data.source}: its tokeniser has {dataset.vocab} ids, the model {config.model.vocab}; "
            f"set --model.vocab {dataset.vocab} or prepare the data with a smaller vocabulary"
        )
    split, data, lengths = dataset.split("train"), config.data, dataset.tokenizer.byte_lengths()
    if config.model.positions == "learned" and data.window > config.model.context:
        raise InputError(
            f"--data.window {data.window} exceeds --model.context {config.model.context}, the learned positions; "
            "raise the context or shorten the window"
        )
    shape = {"rows": config.batch, "window": data.window, "vocab": dataset.vocab}
    if data.mode == "packed":
        return PackedSource(split, seed=config.seed, byte_lengths=lengths, **shape)
    return StreamSource(split, resets=data.document_resets, byte_lengths=lengths, **shape)


def describe_data(source: PackedSource | StreamSource, plan: Plan) -> str:
    """How much text there is, how full its rows are, and how often the budget reads it."""
    split = source.split
    kind = "packed" if isinstance(source, PackedSource) else "stream"
    return (
        f"data        {split.documents:,} training documents, {split.tokens:,} tokens; "
        f"{kind} rows {source.fill:.2%} full; the budget reads it {source.epoch(plan.steps):.2f} times"
    )


def _find_checkpoint(config: TrainConfig, folder: Path, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from. InputError when there is one and the config does not say to resume."""
    checkpoints = folder / "checkpoints"
    if config.run.resume == "no":
        if checkpoint.listing(checkpoints):
            raise InputError(
                f"{folder}: holds a run already; go on with --run.resume auto, or choose another --run.folder"
            )
        return None
    if ranks.main and (stale := checkpoint.clean(checkpoints)):
        console.say(f"removed {len(stale)} half-written checkpoints: {', '.join(path.name for path in stale)}")
    ranks.barrier()
    found, problems = checkpoint.newest(checkpoints)
    for problem in problems if ranks.main else []:
        console.complain(f"warning: {problem}")
    return found


def _resumed_plan(
    saved: Checkpoint,
    config: TrainConfig,
    dataset: Dataset,
    ranks: Ranks,
    precision: Precision,
    layout: Layout,
) -> Plan:
    """The stored plan: a budget is turned into steps once. A changed budget (if allowed) makes a new one."""
    changed = resume.check_config(saved.trainer["config"], config)
    resume.check_data(saved.trainer, dataset, config.data.allow_change)
    if {"budget", "tokens_per_second", "reference"} & set(changed):
        return plan_run(config, ranks, precision, layout)
    return Plan(**saved.trainer["plan"])


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
    ) -> None:
        self.config, self.preset, self.ranks, self.precision = config, preset, ranks, precision
        self.layout, self.plan, self.dataset, self.folder, self.goodput = (
            layout,
            plan,
            dataset,
            folder,
            goodput,
        )
        torch.manual_seed(config.seed)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = LanguageModel.build(config.model, config.seed, ranks.device, dtype)
        self.optimizer = Optimizer(self.model, config.optimizer)
        self.records = Sinks([], console.complain)

    def train(self, source: PackedSource | StreamSource, saved: Checkpoint | None) -> int:
        """From the start or from `saved` to the end of the budget, or to a signal."""
        config, ranks = self.config, self.ranks
        progress = self._restore(saved)
        stop = StopSignal()
        if ranks.main:
            self._open_folder(saved, source)
        step = Step(ranks.wrap(self.model), self.optimizer, ranks, self.precision, self.plan.tokens_per_step)
        costs = cost(config.model, config.data.window)
        course = Course(config, self.plan, costs, device_peak_flops(ranks.device))
        hooks = Hooks(report=self._report, validate=self._validate, save=self._save)
        loader = Loader(
            source,
            rows=self.layout.rows,
            micro_batches=self.layout.micro_batches,
            device=ranks.device,
            start_step=progress.step,
        )
        done = progress.step >= self.plan.steps
        try:
            with loader:
                done = done or train(course, step, loader, progress, ranks, self.goodput, stop, hooks)
            if done:
                finish(self.model, self.dataset, config, self.plan, ranks, self.goodput, self.folder)
            elif ranks.main:
                note = {"signal": stop.name, "step": progress.step}
                (self.folder / PREEMPTED).write_text(json.dumps(note) + "\n", encoding="utf-8")
                console.say(
                    f"stopped by {stop.name or 'another rank'} after step {progress.step}, saved in {self.folder}; "
                    "go on with the same command and --run.resume auto"
                )
        finally:
            stop.restore()
            self.records.close()
        return 0

    def _open_folder(self, saved: Checkpoint | None, source: PackedSource | StreamSource) -> None:
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
        since = None if saved is None else int(saved.trainer["step"])
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
            return progress
        self.model.load_state_dict(saved.model)
        self.optimizer.load_state_dict(saved.optimizer)
        checkpoint.restore_random_state(saved.state, self.ranks.device)
        progress.step, progress.skipped = int(saved.trainer["step"]), int(saved.trainer["skipped"])
        rows = {name[4:]: x.to(self.ranks.device) for name, x in saved.state.items() if name.startswith("row.")}
        if rows:
            state, size = State.from_dict(rows, self.config.model.layers), self.layout.micro_rows
            starts = range(self.layout.rows.start, self.layout.rows.stop, size)
            picks = [torch.arange(start, start + size, device=self.ranks.device) for start in starts]
            progress.states = [state.select(pick) for pick in picks]
        return progress

    def _save(self, progress: Progress) -> None:
        """A checkpoint of everything; a full disk is reported and training goes on with the older ones."""
        state: dict[str, Tensor] = checkpoint.random_state(self.ranks.device)
        if all(part is not None for part in progress.states):
            mine = State.concatenate([part for part in progress.states if part is not None])
            state |= {f"row.{name}": self.ranks.gather_rows(x) for name, x in mine.to_dict().items()}
        if not self.ranks.main:
            return
        trainer = {
            "step": progress.step,
            "tokens": progress.step * self.plan.tokens_per_step,
            "skipped": progress.skipped,
            "plan": dataclasses.asdict(self.plan),
            "paid_seconds": self.goodput.snapshot(),
            "config": to_table(self.config),
            "data": self.dataset.fingerprint,
            "tokenizer": self.dataset.tokenizer.fingerprint,
        }
        tensors: Mapping[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": state,
        }
        try:
            checkpoint.save(self.folder / "checkpoints", progress.step, tensors, trainer)
            checkpoint.prune(self.folder / "checkpoints", self.config.run.keep)
        except OSError as error:
            console.complain(f"warning: checkpoint of step {progress.step} not saved: {error}; older ones are intact")

    def _validate(self) -> Mapping[str, float]:
        evaluation, data = self.config.evaluation, self.config.data
        found = evaluate_split(
            self.model,
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
