"""Models x compute classes x seeds, each one run folder: planned as a whole, run one by one, gone on with after a stop.

A plan is a TOML file:

    models = ["gpt-nano", "qlstm-nano"]
    classes = ["20s", "40s"]
    seeds = [0, 1]
    folder = "runs/nano"
    [train]                        # fields of a training run, for all runs
    batch = 8
    [model.qlstm-nano]             # and for one model
    optimizer.lr = 1e-2

Each model's throughput is measured once, before its first run, and kept in the sweep's folder: all its classes and
seeds, and a sweep that goes on later, spend hours of the same length.
"""

import dataclasses
import difflib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import tomli_w

from hotplate.train import checkpoint, resume, settings
from hotplate.train.budget import Budget
from hotplate.train.config import TrainConfig
from hotplate.train.errors import InputError
from hotplate.train.plan import lay_out
from hotplate.train.published import reference_throughput
from hotplate.train.ranks import start
from hotplate.train.step import resolve_precision
from hotplate.train.throughput import measure
from hotplate.train.untrusted import read_amounts, read_object, read_toml

STUDIES = Path(__file__).parent.parent / "studies"
LOG = "log.txt"  # in a run's folder: what the run printed
SPEEDS = "throughput.json"  # in the sweep's folder
Status = Literal["waiting", "done", "interrupted", "failed"]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep runs. `train` and `model` hold fields of TrainConfig, checked when the runs are made."""

    models: tuple[str, ...] = ()
    """presets or .toml files"""
    classes: tuple[str, ...] = ()
    """compute classes, in accelerator time"""
    seeds: tuple[int, ...] = (0,)
    """initial weights and data order"""
    folder: str = ""
    """where the runs go: FOLDER/MODEL/CLASS/seed-SEED"""
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """fields of every run"""
    model: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """fields of one model's runs"""


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    model: str
    budget: str
    seed: int
    folder: Path
    config: TrainConfig

    def __str__(self) -> str:
        return f"{self.model} {self.budget} seed {self.seed}"

    @property
    def file(self) -> Path:
        """The preset that the run is started from; its stem is the preset's name in the run's records."""
        return self.folder / f"{Path(self.model).stem}.toml"

    @property
    def status(self) -> Status:
        """From what is in the folder."""
        if (self.folder / "summary.json").is_file():
            return "done"
        if (self.folder / "failed.json").is_file():
            return "failed"
        return "interrupted" if checkpoint.listing(self.folder / "checkpoints") else "waiting"


def load_plan(name: str) -> SweepPlan:
    """The plan in the .toml file `name`, or the shipped study of that name. InputError for unknown keys or types."""
    path = Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"
    known = ", ".join(sorted(study.stem for study in STUDIES.glob("*.toml")))
    if not path.is_file():
        raise InputError(f"sweep: {name!r} is neither a .toml file nor a shipped study ({known})")
    values = read_toml(path)
    for key in ("train", "model"):
        if not isinstance(values.get(key, {}), dict):
            raise InputError(f"{path}: {key}: want a table, got {values[key]!r}")
    tables = {key: values.pop(key) for key in ("train", "model") if key in values}
    return dataclasses.replace(settings.merge(SweepPlan(), values, str(path)), **tables)


def plan_runs(plan: SweepPlan, where: str) -> list[Planned]:
    """Every run of the plan, smallest class first. InputError for anything wrong in any of them, before one starts."""
    for name in ("models", "classes", "seeds", "folder"):
        if not getattr(plan, name):
            raise InputError(f"{where}: {name}: want at least one; e.g. {_EXAMPLES[name]}")
    if unknown := sorted(set(plan.model) - set(plan.models)):
        near = difflib.get_close_matches(unknown[0], plan.models, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"models: {', '.join(plan.models)}"
        raise InputError(f"{where}: model.{unknown[0]}: not among the models of this plan; {hint}")
    for name in ("models", "classes", "seeds"):
        if len(set(getattr(plan, name))) < len(getattr(plan, name)):
            raise InputError(f"{where}: {name}: want each once, got {', '.join(map(str, getattr(plan, name)))}")
    budgets = {text: Budget.parse(text) for text in plan.classes}
    if wrong := [text for text, budget in budgets.items() if budget.unit != "seconds"]:
        raise InputError(f"{where}: classes: want accelerator time, like 20s or 6h, got {wrong[0]!r}")
    for key in ("budget", "seed", "tokens_per_second"):
        if key in plan.train or any(key in changes for changes in plan.model.values()):
            raise InputError(f"{where}: {key} is the sweep's to set; use classes and seeds")
    configs = {model: _config(plan, model, where) for model in plan.models}
    runs = []
    for text in sorted(budgets, key=lambda text: budgets[text].amount):
        for model, config in configs.items():
            for seed in plan.seeds:
                folder = Path(plan.folder) / Path(model).stem / text / f"seed-{seed}"
                run = dataclasses.replace(config.run, folder=str(folder), resume="auto")
                changed = dataclasses.replace(config, budget=text, seed=seed, run=run)
                runs.append(Planned(model, text, seed, folder, changed))
    _check_folders(runs, where)
    return runs


def _check_folders(runs: Sequence[Planned], where: str) -> None:
    """InputError when a run's folder was made by a plan with other settings: it would be taken for done."""
    for run in runs:
        if not run.file.is_file():
            continue
        mend = "delete it if the folder's run is of this plan, or choose another folder"
        saved = resume.flatten(read_toml(run.file, mend))
        now = resume.flatten(settings.to_table(run.config)) | {"tokens_per_second": saved.get("tokens_per_second")}
        changed = [key for key in sorted(saved | now) if saved.get(key) != now.get(key)]
        if changed:
            key = changed[0]
            raise InputError(
                f"{where}: {run.folder} holds a run of another plan: {key} was {saved.get(key)!r}, "
                f"is {now.get(key)!r}; choose another folder"
            )


_EXAMPLES = {"models": '["gpt-nano"]', "classes": '["20s"]', "seeds": "[0]", "folder": '"runs/nano"'}


def _config(plan: SweepPlan, model: str, where: str) -> TrainConfig:
    try:
        config = settings.load_preset(model)
    except InputError as error:
        raise InputError(f"{where}: models: {error}") from error
    config = settings.merge(config, plan.train, f"{where}: train")
    return settings.merge(config, plan.model.get(model, {}), f"{where}: model.{model}")


def read_speeds(path: Path) -> dict[str, float]:
    """Tokens/s by model, as a sweep keeps them. InputError when the file holds anything else."""
    mend = "correct it, or delete it: every model's throughput is measured again then"
    return read_amounts(path, "the throughputs of a sweep", "tokens/s", mend)


def throughputs(runs: Sequence[Planned], folder: Path, say: Say) -> dict[str, float]:
    """Tokens/s of every model: what the sweep's folder knows, the reference card's published, or measured now."""
    path = folder / SPEEDS
    known = read_speeds(path) if path.is_file() else {}
    for run in runs:
        if run.model in known:
            continue
        if run.config.reference is not None:
            known[run.model] = reference_throughput(run.config.reference, run.config.model)
            continue
        ranks = start(run.config)
        try:
            precision, rows = resolve_precision(run.config, ranks.device), lay_out(run.config, ranks).micro_rows
            found = measure(
                run.config.model,
                run.config.optimizer,
                ranks,
                precision,
                run.config.execution,
                rows=rows,
                window=run.config.data.window,
            )
        finally:
            ranks.close()
        known[run.model] = found.tokens_per_second
        say(f"throughput  {run.model}: {found.tokens_per_second:,.0f} tok/s at {rows} rows")
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return known


def prepare(run: Planned, speeds: Mapping[str, float]) -> list[str]:
    """Write the run's preset and return the command that runs it, or goes on with it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(run.config, tokens_per_second=speeds.get(run.model))
    run.file.write_text(tomli_w.dumps(settings.to_table(config)), encoding="utf-8")
    return [sys.executable, "-m", "hotplate.train.main", str(run.file)]


def run_process(command: Sequence[str], log: BinaryIO) -> int:
    """The exit code of `command`. Interrupted from the keyboard, the run has the signal too: it is left to save."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


@dataclass(frozen=True)
class Execution:
    """A run's process, wherever it is started. On a cluster it is sent there, and again when its time is up."""

    command: tuple[str, ...]
    folder: str

    def __call__(self) -> int:
        """Run it to its end; its exit code. What it prints goes to log.txt; a failure is noted in failed.json."""
        note = Path(self.folder) / "failed.json"
        note.unlink(missing_ok=True)
        with (Path(self.folder) / LOG).open("ab") as log:
            code = run_process(self.command, log)
        if code:
            text = (Path(self.folder) / LOG).read_text(encoding="utf-8", errors="replace")
            last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
            note.write_text(json.dumps({"code": code, "last": last[:500]}) + "\n", encoding="utf-8")
        return code

    def checkpoint(self) -> Any:
        """submitit calls this when the cluster takes the machine away: queue the same again; the run resumes itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_here(runs: Sequence[Planned], speeds: Mapping[str, float], say: Say) -> list[Planned]:
    """Run what is not done, in order; the runs that failed. A signal ends the sweep after the current run's saving."""
    failed = []
    for number, run in enumerate(runs, 1):
        before = run.status
        if before == "done":
            continue
        verb = {"interrupted": "going on with", "failed": "trying again"}.get(before, "running")
        say(f"[{number}/{len(runs)}] {verb} {run}")
        code = Execution(tuple(prepare(run, speeds)), str(run.folder))()
        if code:
            failed.append(run)
            say(f"[{number}/{len(runs)}] {run} failed with exit code {code}: {failure(run)}; see {run.folder / LOG}")
        elif run.status != "done":
            raise InputError(f"{run} was stopped and saved; the same command goes on with it")
    return failed


def failure(run: Planned) -> str:
    """The last thing that a failed run said. InputError when its note is damaged."""
    path, mend = run.folder / "failed.json", "delete it, and sweep again: the run is tried again then"
    last = read_object(path, "the note of a failed run", mend).get("last")
    if not isinstance(last, str):
        raise InputError(f"{path}: last: want text, got {last!r}; {mend}")
    return last


def outcome(run: Planned) -> tuple[int, float | None, float]:
    """(tokens, normalised perplexity per byte of the first split if any, goodput) of a run that is done. InputError
    when its summary is damaged."""
    path, mend = run.folder / "summary.json", "delete it, and sweep again: the run is ended from its checkpoint then"
    summary = read_object(path, "the summary of a run", mend)
    try:
        split = next(iter(summary["splits"].values()), None)
        score = None if split is None else float(split["normalised_perplexity"])
        return int(summary["tokens"]), score, float(summary["goodput"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: not the summary of a run: {type(error).__name__} {error}; {mend}") from error


def submit(runs: Sequence[Planned], speeds: Mapping[str, float], folder: Path, cluster: str, slurm: Mapping[str, Any]):
    """Hand what is not done to submitit; its jobs. InputError when the package or the cluster is missing."""
    try:
        import submitit
    except ImportError as error:
        raise InputError(f"--executor {cluster}: submitit is missing; pip install 'hotplate[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder=os.fspath(folder / "jobs"), cluster=cluster)
        executor.update_parameters(**slurm)
    except (RuntimeError, ValueError, NameError) as error:
        raise InputError(f"--executor {cluster}: {error}") from error
    waiting = [run for run in runs if run.status != "done"]
    return [executor.submit(Execution(tuple(prepare(run, speeds)), str(run.folder))) for run in waiting]
