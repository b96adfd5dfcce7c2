"""From folders of runs to laws, crossings and the page; and what is refused on the way."""

import json
import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

from hotplate.model.cost import cost
from hotplate.model.presets import PRESETS
from hotplate.train.commands import crossing, fit, report
from hotplate.train.science.chinchilla import Chinchilla
from hotplate.train.science.observations import Run, families, gather, read_run


def test_a_run_folder_becomes_an_observation(make_run) -> None:
    folder = make_run("qlstm-nano", 2.0, 2.5, seed=3)
    (found,) = gather([str(folder)], "normalised_perplexity", "test", "architecture")
    costs = cost(PRESETS["qlstm-nano"], 512)
    assert (found.family, found.model, found.seed, found.value) == ("qlstm", "qlstm-nano", 3, 2.5)
    assert (found.hours, found.tokens, found.parameters) == (2.0, 7.2e6, costs.parameters)
    assert found.flops == 7.2e6 * costs.training_flops
    assert isinstance(read_run(folder), Run)


def test_tables_of_points_join_runs_and_derive_hours(make_run, tmp_path: Path) -> None:
    table = tmp_path / "points.toml"
    table.write_text(
        'metric = "normalised_perplexity"\n[[point]]\nfamily = "peer"\nvalue = 2.9\ntokens = 3.6e6\n'
        'tokens_per_second = 500\naccelerator = "Some CPU"\n'
    )
    found = gather([str(make_run()), str(table)], "normalised_perplexity", "test", "architecture")
    assert list(families(found)) == ["gpt", "peer"]
    assert found[1].hours == pytest.approx(2.0)


def test_fit_and_crossing_commands_find_the_study_s_laws(study: Path, tmp_path: Path, capsys) -> None:
    laws, met = tmp_path / "laws.json", tmp_path / "met.json"
    assert fit.main([str(study), "--at", "100", "--json", str(laws), "--bootstrap.replicates", "100"]) == 0
    record = json.loads(laws.read_text())
    assert record["gpt"]["b"] == pytest.approx(-0.1, abs=1e-6)
    assert record["qlstm"]["at"][0]["value"] == pytest.approx(3.3 * 100**-0.15, rel=1e-3)
    low, high = record["qlstm"]["intervals"]["b"]
    assert low < -0.15 < high
    assert crossing.main([str(study), "--gains", "2", "--json", str(met), "--bootstrap.replicates", "100"]) == 0
    plain, faster = json.loads(met.read_text())["crossings"]
    at = (3.3 / 3.0) ** (1 / 0.05)
    assert plain["hours"] == pytest.approx(at, rel=1e-2) and plain["overtaking"] == "qlstm"
    assert faster["hours"] == pytest.approx(at * 2 ** (-0.15 / 0.05), rel=2e-2)
    assert "qlstm overtakes gpt" in capsys.readouterr().out


def test_chinchilla_command_finds_the_best_model_of_a_compute(tmp_path: Path, capsys) -> None:
    true = Chinchilla(1.7, 400.0, 410.0, 0.34, 0.28)
    sizes = [(n, d) for n in (5e6, 2e7, 8e7) for d in (1e8, 4e8, 1.6e9)]
    points = [{"family": "gpt", "value": float(true(n, d)), "parameters": n, "tokens": d} for n, d in sizes]
    table, out = tmp_path / "points.json", tmp_path / "law.json"
    table.write_text(json.dumps({"metric": "loss", "point": points}))
    flags = [
        "--metric",
        "loss",
        "--law",
        "chinchilla",
        "--at",
        "1e20",
        "--json",
        str(out),
        "--bootstrap.replicates",
        "20",
    ]
    assert fit.main([str(table), *flags]) == 0
    assert json.loads(out.read_text())["gpt"]["alpha"] == pytest.approx(0.34, rel=1e-3)
    assert "best at 6 N D FLOPs" in capsys.readouterr().out


def test_one_card_by_two_names_is_one_accelerator(make_run) -> None:
    first = str(make_run("gpt-mini", 1.0, 3.0, reference="rtx3090"))
    others = [str(make_run("gpt-mini", hours, 3 / hours**0.1, reference="RTX 3090")) for hours in (2.0, 4.0)]
    assert fit.main([first, *others]) == 0


def test_published_gpt_law_and_crossing_table(capsys) -> None:
    assert fit.main(["published", "--metric", "normalised_perplexity_characters", "--at", "50000"]) == 0
    assert "-0.03" in capsys.readouterr().out
    assert crossing.main(["published"]) == 0
    out = capsys.readouterr().out
    assert "50,000 RTX 3090 hours" in out and "medium 15%" in out and "400 h" in out


def test_the_page_is_one_file_with_every_part(study: Path, tmp_path: Path) -> None:
    out, numbers = tmp_path / "page.html", tmp_path / "page.json"
    bench = tmp_path / "bench.json"
    row = {
        "bench": "qlstm",
        "case": "forward",
        "provider": "native",
        "dtype": "float32",
        "floor_ms": 1.0,
        "ms_median": 4.0,
    }
    bench.write_text(json.dumps({"machine": {"name": "Some CPU", "date": "2026-11-22T00:00"}, "rows": [row]}))
    arguments = [
        str(study),
        "-o",
        str(out),
        "--json",
        str(numbers),
        "--bench",
        str(bench),
        "--bootstrap.replicates",
        "50",
    ]
    assert report.main(arguments) == 0
    text = out.read_text()
    for part in ("Held-out scores", "Scaling laws", "crossings", "Learning curves", "goodput", "Kernels", "25%"):
        assert part in text
    assert f"hotplate report {study}" in text and "hotplate train &lt;b&gt;" in text
    assert not re.search(r'(src|href)="(?!#)', text) and "@import" not in text and "url(http" not in text
    pictures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        xml.etree.ElementTree.fromstring(picture.replace("xlink:href", "href"))
        assert "var(--gpt)" in picture and not re.search(r"#(2563b8|1c2430|66707f)", picture)
    for name in ("laws", "crossing", "curves", "throughput"):
        assert (tmp_path / "page" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    record = json.loads(numbers.read_text())
    assert record["machine"]["name"] == "Some CPU" and len(record["runs"]) == 12
    assert set(record["fits"]) == {"hours", "tokens", "flops"} and record["crossings"][0]["overtaking"] == "qlstm"


def test_a_page_without_enough_runs_says_what_is_missing(make_run, tmp_path: Path, capsys) -> None:
    folder = make_run("gpt-nano", None)
    assert report.main([str(folder), "-o", str(tmp_path / "one.html")]) == 0
    text = (tmp_path / "one.html").read_text()
    assert "Not fitted: gpt against tokens" in text and "hours: the runs have none in common" in text
    assert "not fitted" in capsys.readouterr().err


def test_mistakes_are_one_clear_error(make_run, refused, tmp_path: Path) -> None:
    assert "got none" in refused(fit)
    assert "want run folders" in refused(report)
    assert "no such folder" in refused(fit, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "no run in this folder" in refused(report, str(tmp_path / "empty"))
    good = make_run()
    assert "got 1 at 1" in refused(fit, str(good))
    assert "no split 'validation'" in refused(fit, str(good), "--split", "validation")
    assert "two families or more, got" in refused(crossing, *(str(make_run(hours=h, value=v)) for h, v in STEPS))
    assert "want positive amounts" in refused(fit, str(good), "--at", "-1")
    assert "its metric is 'normalised_perplexity_characters'" in refused(fit, "published")


STEPS = ((2.0, 2.9), (4.0, 2.8), (8.0, 2.7))


def test_unfinished_and_foreign_folders_are_named(make_run, refused) -> None:
    folder = make_run()
    (folder / "checkpoints" / "step-00000120").mkdir(parents=True)
    summary = (folder / "summary.json").read_text()
    (folder / "summary.json").unlink()
    assert "unfinished, it stopped at or after step 120; go on" in refused(report, str(folder))
    for text in ("{}", "[", '{"splits": 3}'):
        (folder / "summary.json").write_text(text)
        assert "not a run folder of this version" in refused(fit, str(folder))
    (folder / "summary.json").write_text(summary)
    (folder / "config.toml").write_text("preset = 'gpt-nano'\nbacth = 3")
    assert "no field 'bacth'" in refused(fit, str(folder))


def test_incomparable_runs_are_refused(make_run, refused, tmp_path: Path) -> None:
    first = str(make_run(hours=1.0))
    other_text = str(make_run(hours=2.0, size=2999))
    assert "different test text: 2,999 and 3,000 bytes" in refused(fit, first, other_text)
    other_tokens = [str(make_run(hours=4.0, value=2.9, targets=900)), str(make_run(hours=8.0, value=2.8))]
    assert "compare tokenisers by --metric" in refused(fit, first, *other_tokens, "--metric", "loss")
    assert fit.main([first, *other_tokens]) == 0
    other_machine = str(make_run(hours=16.0, value=2.7, name="Another CPU"))
    assert "different accelerators" in refused(fit, first, *other_tokens, other_machine)
    assert fit.main([first, *other_tokens, other_machine, "--axis", "tokens"]) == 0
    timeless = str(make_run(hours=None, value=2.0))
    assert "no hours known; a budget in tokens" in refused(fit, first, timeless)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric = 3", "one or more [[point]]"),
        ('metric = "loss"\n[[point]]\nfamily = "a"\nvalue = 1.0', "its metric is 'loss'"),
        ('metric = "normalised_perplexity"\n[[point]]\nfamily = "a"', "point 1: want at least family and value"),
        ('metric = "normalised_perplexity"\n[[point]]\nfamily = "a"\nvalue = -1.0', "positive number for value"),
        ('metric = "normalised_perplexity"\n[[point]]\nfamily = "a"\nvalue = 1.0\nhour = 2', "did you mean 'hours'"),
        ("[[[", "cannot be read as a table"),
    ],
)
def test_bad_tables_say_where(refused, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "points.toml"
    path.write_text(text)
    assert message in refused(fit, str(path))
