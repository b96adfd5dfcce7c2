"""Files of experiments: plans, tables of points, results, kept timings, summaries; and other programs' configs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from hotplate.bench import diff, results
from hotplate.bench.fuzz.target import Target
from hotplate.model.hf.configs import from_hf, to_hf
from hotplate.model.hf.files import read_json
from hotplate.model.presets import PRESETS
from hotplate.train.config import EngineConfig, TrainConfig
from hotplate.train.engines import zero
from hotplate.train.errors import InputError
from hotplate.train.ranks import ALONE
from hotplate.train.science import growth_study, sweep
from hotplate.train.science.batch_search import Row as Timed
from hotplate.train.science.batch_search import Search, read_kept
from hotplate.train.science.observations import read_run, read_table
from hotplate.train.science.report import speed_of_light
from hotplate.train.untrusted import read_toml

PLAN = b"""models = ["gpt-nano"]\nclasses = ["20s"]\nseeds = [0, 1]\nfolder = "runs/x"\n[train]\nbatch = 4\n"""
STUDY = b"""seeds = [0, 1]\n[train]\nbatch = 4\n[way.plain]\nmoments = "keep"\n"""
POINTS = b"""metric = "loss"\n[[point]]\nfamily = "a"\nvalue = 3.5\ntokens = 1e6\ntokens_per_second = 1e3\n"""


def studies(folder: Path) -> list[Target]:
    place = folder / "studies"
    place.mkdir()
    plan, study, points, table = (place / name for name in ("plan.toml", "study.toml", "a.toml", "a.json"))
    bench, profile, kept = (place / name for name in ("bench.json", "operations.json", "kept.json"))
    summary, model, override = (place / name for name in ("summary.json", "config.json", "deepspeed.json"))
    row = results.Row(
        bench="step", case="x", provider="p", device="cpu", dtype="float32", ms_median=1.0, ms_p20=0.9, ms_p80=1.1,
        cpu_ms_median=None, floor_ms=0.5, max_err=0.0,
    )  # fmt: skip
    results.write(bench, [row, replace(row, provider="q")], {"name": "Box", "date": "2026-01-02"})
    operations = {"operations": [{"name": "addmm", "milliseconds": 0.5}]}
    point = {"metric": "loss", "point": [{"family": "a", "value": 3.5, "tokens": 1e6}]}
    (place / "config.toml").write_text('preset = "gpt-nano"\n', encoding="utf-8")
    (place / "environment.json").write_text('{"plan": {"tokens_per_second": 1.0}}', encoding="utf-8")
    facts = {"splits": {"test": {"loss": 3.5}}, "tokens": 64, "budget": "1steps"}
    gpt = to_hf(PRESETS["decoder-nano"], "llama", True)
    tuned = {"zero_optimization": {"overlap_comm": True}}
    config = TrainConfig(engine=EngineConfig(kind="deepspeed", deepspeed=str(override)))

    def target(name: str, path: Path, seed: bytes | dict, parse) -> Target:
        return Target(name, path, [json.dumps(seed).encode() if isinstance(seed, dict) else seed], parse)

    return [
        target("sweep's plan", plan, PLAN, lambda: sweep.load_plan(str(plan))),
        target("growth study's plan", study, STUDY, lambda: _study(study)),
        target("points, TOML", points, POINTS, lambda: read_table(points, "loss")),
        target("points, JSON", table, point, lambda: read_table(table, "loss")),
        target("bench result", bench, bench.read_bytes(), lambda: diff.changes(bench, bench)),
        target("bench result in a report", bench, bench.read_bytes(), lambda: speed_of_light(bench)),
        target("profile", profile, operations, lambda: diff.changes(profile, profile)),
        target("kept timings", kept, _timings(), lambda: read_kept(kept)),
        target("summary of a run", summary, facts, lambda: read_run(place)),
        target("Hugging Face config", model, gpt, lambda: _foreign(model)),
        target("DeepSpeed override", override, tuned, lambda: zero.settings(config, ALONE, "fp32")),
    ]


def _study(path: Path) -> None:
    growth_study.load_plan(read_toml(path), str(path))


def _timings() -> dict:
    row = Timed(
        model="gpt-nano", device="cpu", precision="fp32", rows=2, window=8, parameters=9, non_embedding_parameters=3,
        training_flops_per_token=54, tokens_per_second=10.0,
    )  # fmt: skip
    found = Search(best=row, tried=(row,), environment={"name": "Box"})
    return {"machine": found.environment, "best": asdict(row), "tried": [asdict(row)]}


def _foreign(path: Path) -> None:
    """Its caller turns a ValueError into the message."""
    try:
        from_hf(read_json(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
