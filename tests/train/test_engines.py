"""Engines: the same losses, data and checkpoints however many ranks share the model, and however they do."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from crew import Crew
from runs import losses, same, weights
from tiny import TINY

from hotplate.train import checkpoint, shares
from hotplate.train.commands import checkpoint as command
from hotplate.train.errors import InputError
from hotplate.train.settings import load_preset, parse
from hotplate.train.sinks import read_records
from hotplate.train.traffic import demand

# Rows of no parameter but the embedding divide by 4 ranks, and one vector is shorter than they are many.
UNEVEN = ["--model.width=30", "--model.ffn=62", "--model.mixer.head-width=15", "--model.positions=none"]
STREAM = ["--data.mode=stream", "--model.mixer.kind=lstm", "--model.positions=none", "--micro-batch=2"]
MUON = ["--optimizer.kind=muon"]
EPS = "--optimizer.eps=1e-4"  # with a tiny eps, Adam's first updates are the signs of rounding errors
FSDP, HYBRID = ["--engine=fsdp"], ["--engine=fsdp", "--engine.replicas=2"]
ZERO1 = ["--engine=deepspeed", "--engine.zero=1"]
ZERO3 = ["--engine=deepspeed", "--engine.zero=3"]
DAMAGED = "model-00000.safetensors"


def flags(prepared: Path, steps: int, *more: str) -> list[str]:
    return [*TINY, f"--data.source={prepared}", f"--budget={steps}steps", "--evaluation.every=0", EPS, *more]


@pytest.fixture(scope="module")
def crew():
    """Ranks for all tests here."""
    members = Crew()
    yield members
    members.close()


def alike(a: Path, b: Path) -> None:
    """Loss of every step, tokens and bytes that it was of, and final weights."""
    one, two = losses(a), losses(b)
    assert [step for step, _ in one] == [step for step, _ in two]
    for (_, x), (_, y) in zip(one, two, strict=True):
        assert y == pytest.approx(x, abs=2e-6)
    first, second = ([r["loss"] / r["bits_per_byte"] for r in read_records(f / "metrics.jsonl")] for f in (a, b))
    assert second == pytest.approx(first, rel=1e-6)  # bytes per target: which documents were read
    for name, x in weights(a).items():
        torch.testing.assert_close(weights(b)[name], x, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(prepared: Path, crew, tmp_path_factory: pytest.TempPathFactory):
    """A function (*flags) -> the folder of that run on one rank and the rows it read, made once."""
    made: dict[tuple[str, ...], tuple[Path, list[list[str]]]] = {}

    def run(*more: str) -> tuple[Path, list[list[str]]]:
        if more not in made:
            folder = tmp_path_factory.mktemp("alone")
            crew.train(folder, *flags(prepared, 6, *more), "--run.folder=run", ranks=1)
            made[more] = folder / "run", crew.rows
        return made[more]

    return run


CASES = {
    "fsdp": (2, FSDP, []),
    "fsdp-uneven-muon": (4, FSDP, [*UNEVEN, *MUON]),
    "hybrid-muon": (4, HYBRID, MUON),
    "fsdp-stream-muon": (4, FSDP, [*STREAM, *MUON]),
    "ddp-muon": (2, [], MUON),
    "ddp-muon-exchanged-late": (2, ["--guard.out-of-memory=halve"], [*MUON, "--micro-batch=2"]),
    "fsdp-alone": (1, FSDP, []),
    "zero-1": (2, ZERO1, []),
    "zero-2-uneven-stream": (4, ["--engine=deepspeed"], [*STREAM, *UNEVEN]),
    "zero-3-clipped": (2, ZERO3, ["--optimizer.clip=0.1", "--micro-batch=2"]),
    "zero-3-stream": (2, ZERO3, STREAM),
}


@pytest.mark.parametrize("case", CASES)
def test_every_engine_equals_one_rank(prepared: Path, crew, alone, tmp_path: Path, case: str) -> None:
    """Rows, too: of each update, in global order, tokens, targets, weights and positions."""
    ranks, engine, more = CASES[case]
    whole, rows = alone(*more)
    crew.train(tmp_path, *flags(prepared, 6, *more, *engine), "--run.folder=run", ranks=ranks)
    assert crew.rows == rows
    alike(whole, tmp_path / "run")
    mine, other = (json.loads((f / "summary.json").read_text())["splits"] for f in (whole, tmp_path / "run"))
    assert other["test"]["nats"] == pytest.approx(mine["test"]["nats"], rel=1e-5)
    saved = checkpoint.load(checkpoint.listing(tmp_path / "run" / "checkpoints")[-1])
    assert len([name for name in saved.manifest.files if name.startswith("model-")]) == ranks


ENGINES = {"ddp": [], "fsdp": FSDP, "deepspeed": ["--engine=deepspeed"]}
BRIEF = ["--evaluation.splits", "--evaluation.sample-tokens=0"]


@pytest.mark.parametrize(("engine", "ranks"), [("ddp", 4), ("deepspeed", 1), ("deepspeed", 4)])
def test_rows_come_in_one_order_whatever_the_ranks_and_the_engine(prepared, crew, alone, tmp_path, engine, ranks):
    """Of the engines on 1, 2 and 4 ranks, those that the cases above lack."""
    _, rows = alone()
    assert [len(update) for update in rows] == [8] * 6 and len({row for update in rows for row in update}) == 48
    crew.train(tmp_path, *flags(prepared, 2, *BRIEF, *ENGINES[engine]), "--run.folder=run", ranks=ranks)
    assert crew.rows == rows[:2]


def test_preferences_are_learned_alike_under_every_engine(prepared: Path, crew, tmp_path: Path) -> None:
    crew.train(tmp_path, *flags(prepared, 2, *BRIEF), "--run.folder=start", ranks=1)
    lines = [json.dumps({"prompt": [4 + n], "chosen": [9, 5], "rejected": [9 + n, 7, 6]}) for n in range(80)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    common = flags(prepared, 6, *BRIEF, "--optimizer.lr=3e-3", "--micro-batch=2")
    common += ["--preference.pairs=pairs.jsonl", "--run.start=start"]
    found = {}
    for engine, chosen in {**ENGINES, "zero-1": ZERO1, "zero-3": ZERO3}.items():
        crew.train(tmp_path, *common, *chosen, f"--run.folder={engine}", ranks=2)
        found[engine] = losses(tmp_path / engine), weights(tmp_path / engine), crew.rows
    first, expected, rows = found["ddp"]
    assert first[0][1] == pytest.approx(math.log(2), abs=1e-5) and first[-1][1] < 0.6
    for engine, (others, moved, read) in found.items():
        assert read == rows, engine
        assert [x for _, x in others] == pytest.approx([x for _, x in first], abs=2e-6), engine
        for name, x in expected.items():
            torch.testing.assert_close(moved[name], x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [(FSDP, "fp32"), (ZERO1, "fp32"), (ENGINES["deepspeed"], "bf16"), (ZERO3, "fp32"), (ZERO3, "bf16")],
    ids=["fsdp", "zero-1", "zero-2-bf16", "zero-3", "zero-3-bf16"],
)
def test_updates_that_are_not_finite_are_skipped_and_counted(prepared: Path, crew, tmp_path: Path, engine, precision):
    """On one rank of two: neither applies them, and after three in a row the run ends with what it had before."""
    common = flags(prepared, 9, *BRIEF, *engine, "--optimizer.max-skipped=3", "--micro-batch=2")
    common += [f"--precision={precision}", "--run.checkpoint-every=0.34"]
    said = crew.train(tmp_path, *common, "--run.folder=run", ranks=2, poisoned=(2, 5, 6, 7), code=2)
    assert "the last 3 updates had non-finite gradients" in said
    records = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if "loss" in r]
    assert [r["skipped"] for r in records] == [0, 1, 1, 1, 2, 3, 4]
    before, after = (checkpoint.load(path) for path in checkpoint.listing(tmp_path / "run" / "checkpoints")[-2:])
    assert (before.trainer["step"], after.trainer["step"]) == (4, 7)
    for part in ("model", "optimizer"):
        mine, other = getattr(before, part), getattr(after, part)
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_run_goes_on_under_other_engines_and_numbers_of_ranks(prepared: Path, crew, tmp_path: Path) -> None:
    common = flags(prepared, 8, *BRIEF, *STREAM, "--run.checkpoint-every=0.25", "--run.keep=9")
    crew.train(tmp_path, *common, "--run.folder=whole", ranks=1)
    crew.train(tmp_path, *common, "--run.folder=parts", ranks=1)
    for ranks, engine, step in ((2, FSDP, 2), (2, ZERO3, 4), (4, HYBRID, 6), (2, [], 6)):  # of 1, 2, 2 and 4 ranks
        for path in checkpoint.listing(tmp_path / "parts" / "checkpoints"):
            if checkpoint.step_of(path) > step:
                shutil.rmtree(path)
        out = crew.train(tmp_path, *common, *engine, "--run.folder=parts", "--run.resume=auto", ranks=ranks)
        assert f"at step {step}" in out
        alike(tmp_path / "whole", tmp_path / "parts")


def test_shards_resume_bit_for_bit_and_convert_to_one_file_each(prepared: Path, crew, tmp_path: Path, capsys):
    common = [*flags(prepared, 8, *BRIEF, *UNEVEN, *MUON, *FSDP, "--run.checkpoint-every=0.5")]
    crew.train(tmp_path, *common, "--run.folder=whole", ranks=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    last = checkpoint.listing(tmp_path / "broken" / "checkpoints")[-1]
    (last / DAMAGED).write_bytes(b"short")
    assert command.main(["verify", str(tmp_path / "broken")]) == 1
    assert f"{DAMAGED}: damaged" in capsys.readouterr().out
    crew.train(tmp_path, *common, "--run.folder=broken", "--run.resume=auto", ranks=2)
    same(tmp_path / "whole", tmp_path / "broken")
    assert command.main(["verify", str(tmp_path / "broken")]) == 0
    assert command.main(["convert", str(tmp_path / "whole"), "-o", str(tmp_path / "one")]) == 0
    assert command.main(["convert", str(tmp_path / "whole"), "-o", str(tmp_path / "light"), "--weights-only"]) == 0
    whole, one, light = (checkpoint.find(tmp_path / name) for name in ("whole", "one", "light"))
    assert len(whole.manifest.files) == 6 and len(one.manifest.files) == 4 and len(light.manifest.files) == 2
    for part in ("model", "optimizer", "state"):
        mine, other = getattr(whole, part), getattr(one, part)
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert all(torch.equal(whole.weights[name], light.model[name]) for name in light.model)
    kept = checkpoint.listing(tmp_path / "broken" / "checkpoints")
    assert command.main(["prune", str(tmp_path / "broken")]) == 0
    assert list((tmp_path / "broken" / "checkpoints").iterdir()) == kept[-1:]  # none set aside either


def test_a_run_of_shards_grows(prepared: Path, crew, tmp_path: Path) -> None:
    wider = ["--grow-at=0.5", "--growth.factors.width=2", "--growth.factors.ffn=2", "--growth.factors.heads=2", *BRIEF]
    crew.train(tmp_path, *flags(prepared, 6, *wider), "--run.folder=one", ranks=1)
    crew.train(tmp_path, *flags(prepared, 6, *wider, *FSDP), "--run.folder=two", ranks=2)
    alike(tmp_path / "one", tmp_path / "two")


def test_narrow_weights_move_between_engines(prepared: Path, crew, tmp_path: Path) -> None:
    common = flags(prepared, 4, *BRIEF, "--precision=bf16", "--run.checkpoint-every=0.5", "--run.keep=9")
    crew.train(tmp_path, *common, "--run.folder=one", ranks=1)
    crew.train(tmp_path, *common, *FSDP, "--run.folder=two", ranks=2)
    for (_, x), (_, y) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert y == pytest.approx(x, rel=2e-3)
    for name in ("one", "two"):
        shutil.rmtree(checkpoint.listing(tmp_path / name / "checkpoints")[-1])
    crew.train(tmp_path, *common, *FSDP, "--run.folder=one", "--run.resume=auto", ranks=2)
    crew.train(tmp_path, *common, "--run.folder=two", "--run.resume=auto", ranks=1)
    for (_, x), (_, y) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert y == pytest.approx(x, rel=2e-3)


def test_a_dry_run_says_what_ranks_send(prepared: Path, crew, train_tiny, tmp_path: Path, capsys) -> None:
    known = ["--dry-run", "--tokens-per-second=1e6"]  # else it is measured
    common = flags(prepared, 4, *HYBRID, "--micro-batch=1", *known)
    said = crew.train(tmp_path, *common, ranks=4)
    config = parse(load_preset("decoder-nano"), common[1:], "test")
    asked = demand(config, "fp32", 4, 2)
    assert asked.sent > asked.between > 0
    assert f"traffic     fsdp: each of 4 ranks sends {asked.sent / 2**20:,.2f} MiB an update, " in said
    assert f"{asked.between / 2**20:,.2f} of it between replicas" in said
    train_tiny("--budget=4steps", *known)
    assert "traffic" not in capsys.readouterr().out


def test_replicas_that_do_not_divide_the_ranks(train_tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--engine.replicas 2 does not divide 1 ranks; use one of \[1\]"):
        train_tiny("--budget=2steps", *HYBRID, f"--run.folder={tmp_path / 'run'}")


def test_what_deepspeed_cannot_do_is_refused(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*more: str) -> str:
        with pytest.raises(InputError) as error:
            train_tiny("--budget=4steps", "--engine=deepspeed", *more, f"--run.folder={tmp_path / 'run'}")
        return str(error.value)

    assert "excludes --optimizer.kind muon" in refused(*MUON)
    assert "excludes growth" in refused("--grow-at=0.5", "--growth.factors.width=2")
    assert "excludes --guard.spike skip" in refused("--guard.spike=skip")
    override = tmp_path / "more.json"
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "want a JSON object"),
        ('{"gradient_clipping": 3}', "['gradient_clipping'] follow from"),
        ('{"zero_optimization": {"stage": 3}}', "the stage is --engine.zero"),
    ):
        override.write_text(text)
        assert message in refused(f"--engine.deepspeed={override}")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert "pip install 'hotplate[deepspeed]'" in refused()


def test_matrices_are_dealt_out_by_cost() -> None:
    shapes = {"a": (64, 64), "b": (64, 64), "c": (32, 64), "d": (4, 32, 32), "e": (8, 8)}
    assert shares.owners(shapes, 1) == dict.fromkeys("abcde", 0)
    owner = shares.owners(shapes, 2)
    assert owner == shares.owners(dict(reversed(shapes.items())), 2)
    assert owner["a"] != owner["b"] and owner["c"] != owner["d"]


def test_the_norm_of_a_large_table_is_that_of_its_shares() -> None:
    table = torch.randn(16384, 128) * 1e-3
    expected = float(table.double().square().sum().sqrt())
    cpu = table.device
    assert float(shares.Shares().norm([table], cpu)) == pytest.approx(expected, rel=1e-7)
    assert float(shares.Shares().norm([*table.chunk(4), torch.empty(0)], cpu)) == pytest.approx(expected, rel=1e-7)
    assert float(shares.Shares().norm([], cpu)) == 0
