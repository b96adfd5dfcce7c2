"""What is made of result files: the README's tables, and the difference of two files or profiles."""

import json
from pathlib import Path

import pytest

from hotplate.bench import diff, readme, results
from hotplate.bench.commands import diff as diff_command
from hotplate.bench.commands import readme as readme_command
from hotplate.bench.commands.bench import main
from hotplate.bench.results import Row
from hotplate.train.errors import InputError

MACHINE = {"name": "Box", "device": "cpu", "date": "2026-01-02T00:00:00", "threads": 1, "cores": 2}


def row(provider: str, ms: float, **changes) -> Row:
    values = {"bench": "step", "case": "m", "device": "cpu", "dtype": "float32", "max_err": 0.0, "floor_ms": 1.0}
    values |= {"ms_median": ms, "ms_p20": 0.9 * ms, "ms_p80": 1.1 * ms, "cpu_ms_median": None, "tokens_per_s": 8.0}
    return Row(provider=provider, **values | changes)


def test_the_tables_in_the_readme_are_those_of_the_result_files() -> None:
    assert readme_command.main(["--check"]) == 0, "run: hotplate bench readme"


def test_a_stale_readme_is_caught_and_mended(tmp_path: Path, monkeypatch, capsys) -> None:
    folder, page = tmp_path / "results", tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    monkeypatch.setattr(readme, "section", lambda root: f"{readme.BEGIN}{readme_of(folder, root)}{readme.END}")
    results.write(folder / "a.json", [row("hotplate", 4.0), row("peer", 6.0)], MACHINE)
    (folder / "other.json").write_text('{"of": "another command"}')
    assert readme_command.main(["--path", str(page), "--check"]) == 1
    assert readme_command.main(["--path", str(page)]) == 0
    assert readme_command.main(["--path", str(page), "--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| m | float32 | 4 ms | 8 | 25% | peer 1.50 |" in text and "(results/a.json)" in text
    results.write(folder / "b.json", [row("hotplate", 2.0)], MACHINE | {"date": "2026-01-03"})
    assert readme_command.main(["--path", str(page), "--check"]) == 1
    assert "stale" in capsys.readouterr().out
    page.write_text("no marks")
    with pytest.raises(InputError, match="wants the marks"):
        readme_command.main(["--path", str(page)])


def readme_of(folder: Path, root: Path) -> str:
    return "\n".join(readme._table(*one, root) for one in readme.newest(folder))


def test_a_difference_names_what_became_slower_and_what_is_noise(tmp_path: Path, capsys) -> None:
    before = [row("hotplate", 10.0), row("steady", 5.0), row("gone", 1.0)]
    after = [row("hotplate", 13.0), row("steady", 5.5), row("new", 2.0)]
    found = {change.name.split(": ")[1]: change for change in diff.of_rows(before, after)}
    assert found["hotplate"].ratio == 1.3 and not found["hotplate"].noisy
    assert found["steady"].noisy
    assert found["gone"].after is None and found["new"].before is None
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, rows in zip(paths, (before, after), strict=True):
        results.write(path, rows, MACHINE)
    assert main(["diff", *map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert "steady" not in out and "most of it: step m float32: hotplate, +3 ms" in out
    assert main(["diff", str(paths[0]), str(paths[0])]) == 0
    assert "nothing became slower" in capsys.readouterr().out


def test_two_profiles_differ_by_operations(tmp_path: Path, capsys) -> None:
    paths = []
    for name, ms in (("a", 1.0), ("b", 3.0)):
        paths.append(tmp_path / f"{name}.json")
        operations = [{"name": "aten::mm", "milliseconds": 2.0}, {"name": "aten::add", "milliseconds": ms}]
        paths[-1].write_text(json.dumps({"operations": operations}))
    assert diff_command.main([str(path) for path in paths]) == 0
    assert "most of it: aten::add, +2 ms" in capsys.readouterr().out
    results.write(tmp_path / "rows.json", [row("hotplate", 1.0)], MACHINE)
    with pytest.raises(InputError, match="two of a kind"):
        diff.changes(paths[0], tmp_path / "rows.json")
    with pytest.raises(InputError, match="want two files"):
        diff_command.main([])
    with pytest.raises(InputError, match="not a result file"):
        diff.load(tmp_path / "nothing.json")
