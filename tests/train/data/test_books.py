"""Books to file lists: measures against hand counts, filters, duplicates, splits, and the data set made of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import invented_text

from hotplate.train.data.books import curate as curating
from hotplate.train.data.books import duplicates, language
from hotplate.train.data.books.curate import BooksConfig, curate
from hotplate.train.data.books.duplicates import DuplicateConfig, drop_neighbours, near_duplicates, signature
from hotplate.train.data.books.filters import BookFilters, Measures, measure, repeated_lines, top_ngram
from hotplate.train.data.books.words import folded_words, ngrams
from hotplate.train.data.dataset import Dataset
from hotplate.train.data.file_lists import FileLists
from hotplate.train.data.prepare import PrepareConfig, prepare
from hotplate.train.errors import InputError

LOOSE = BookFilters(min_characters=1000, min_words=100, languages=(), max_top_ngram=0.2)
GOOD = Measures(100_000, 20_000, 1.0, 0.95, 0.001, 0.001, 0.18, 4.3, 0.01, 0.001, 0.37)
ENGLISH = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the season of Light, it was the spring of hope, we had everything before us. "
)
FRENCH = (
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient si vite "
    "que je n'avais pas le temps de me dire que je m'endormais, et une demi-heure après la pensée m'éveillait. "
)


def altered(text: str, share: float, seed: int) -> str:
    """The text with a share of its words replaced by others."""
    words, random = text.split(" "), np.random.default_rng(seed)
    for place in random.choice(len(words), int(share * len(words)), replace=False):
        words[place] = f"other{place}"
    return " ".join(words)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Thirty books, one of them twice, one nearly twice, one far too short, one of a repeated line."""
    folder = tmp_path / "books"
    (folder / "universe").mkdir(parents=True)
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text(invented_text(900, number), encoding="utf-8")
    original = (folder / "07.txt").read_text()
    (folder / "copy.txt").write_text("  " + original.upper().replace(".", " ;") + "!", encoding="utf-8")
    (folder / "edition.txt").write_text(altered((folder / "08.txt").read_text(), 0.03, 1), encoding="utf-8")
    (folder / "short.txt").write_text("A line.\n", encoding="utf-8")
    (folder / "loop.txt").write_text("the same words come again and again\n" * 400, encoding="utf-8")
    (folder / "universe" / "one.txt").write_text(invented_text(900, 100), encoding="utf-8")
    (folder / "universe" / "two.txt").write_text(altered((folder / "09.txt").read_text(), 0.03, 2), encoding="utf-8")
    return folder


def config_for(books: Path, **changes) -> BooksConfig:
    out = str(books.parent / "lists")
    made = BooksConfig(source=str(books), out=out, held_out={"universe": "universe/*"}, filters=LOOSE, workers=1)
    return replace(made, **changes)


def test_measures_are_counts_over_the_text() -> None:
    text = "Ab1 cd\u00e9\u0301?\n  €5 \x07 x"
    found = measure(text, folded_words(text), ())
    assert (found.characters, found.words) == (len(text), 4)
    visible = 12  # A b 1 c d é (with a second accent, two characters) ? € 5 BEL x
    assert found.letters == pytest.approx(7 / visible)  # A b c d é, the accent, x
    assert found.digits == pytest.approx(2 / visible)
    assert found.symbols == pytest.approx(2 / visible)  # € and the bell
    assert found.white == pytest.approx((len(text) - visible) / len(text))


def test_words_are_folded() -> None:
    assert folded_words("The ﬁrst Straße, 2nd_x") == ["the", "first", "strasse", "2nd_x"]


def test_repetition_is_counted_by_hand() -> None:
    assert repeated_lines("abcd\nxy\n\n  abcd  \nabcd\n") == pytest.approx(8 / 14)
    assert repeated_lines("one\ntwo") == 0.0
    words = ["a", "b", "c", "d", "x", "a", "b", "c", "d", "y"]
    assert top_ngram(words) == pytest.approx(2 * 4 / 10)
    assert top_ngram(list("abcdefgh")) == 0.0 and top_ngram(["a"]) == 0.0 and top_ngram(["a"] * 50) == 1.0


def test_runs_of_words_depend_on_order_and_place_only() -> None:
    numbers = np.array([3, 1, 4, 1, 5, 3, 1, 4], np.uint64)
    found = ngrams(numbers, 3)
    assert len(found) == 6 and found[0] == found[5] and len(set(found.tolist())) == 5
    assert not len(ngrams(numbers[:2], 3))


@pytest.mark.parametrize(
    ("name", "measured", "value"),
    [
        ("min_characters", "characters", 19_999),
        ("max_characters", "characters", 20_000_001),
        ("min_words", "words", 2_999),
        ("min_language_share", "language_share", 0.74),
        ("min_letters", "letters", 0.84),
        ("max_digits", "digits", 0.081),
        ("max_symbols", "symbols", 0.041),
        ("max_white", "white", 0.36),
        ("min_word_length", "word_length", 2.9),
        ("max_word_length", "word_length", 8.1),
        ("max_repeated_lines", "repeated_lines", 0.21),
        ("max_top_ngram", "top_ngram", 0.021),
        ("min_compression", "compression", 0.19),
        ("max_compression", "compression", 0.61),
    ],
)
def test_each_filter_rejects_what_is_past_its_bound(name: str, measured: str, value: float) -> None:
    filters = BookFilters()
    assert filters.failures(GOOD) == []
    assert filters.failures(replace(GOOD, **{measured: value})) == [name]
    at_the_bound = replace(GOOD, **{measured: getattr(filters, name)})
    assert filters.failures(at_the_bound) == []


def test_language_is_a_vote_of_passages() -> None:
    english, french = ENGLISH * 60, FRENCH * 60
    assert language.language_share(english, ("en",)) == 1.0
    assert language.language_share(french, ("en",)) == 0.0 and language.language_share(french, ("en", "fr")) == 1.0
    assert 0.3 < language.language_share(english + french, ("en",)) < 0.7
    assert language.language_share("Yes.", ("en", "fr", "es", "it", "de")) in (0.0, 1.0)  # shorter than a sample


def test_signatures_estimate_the_jaccard_similarity() -> None:
    config = DuplicateConfig(permutations=256)
    words = invented_text(3000, 1).split()
    texts = [words, words[:2400], words[:1200], invented_text(3000, 2).split()]
    runs = [set(zip(*(text[i:] for i in range(5)), strict=False)) for text in texts]
    signatures = [signature(text, config) for text in texts]
    for other in (1, 2, 3):
        true = len(runs[0] & runs[other]) / len(runs[0] | runs[other])
        estimate = float((signatures[0] == signatures[other]).mean())
        assert abs(estimate - true) <= 4 * math.sqrt(max(true * (1 - true), 1e-3) / 256)
    assert near_duplicates(signatures, config) == [(0, 1)]
    assert near_duplicates(signatures, replace(config, similarity=0.3)) == [(0, 1), (0, 2), (1, 2)]
    assert signature(["one", "two"], config).tolist() == signature(["one", "two"], config).tolist()


def test_a_chain_of_neighbours_keeps_its_ends() -> None:
    assert drop_neighbours([0, 1, 2], [(0, 1), (1, 2)]) == {1: 0}
    assert drop_neighbours([1, 0, 2], [(0, 1), (1, 2)]) == {0: 1, 2: 1}
    assert drop_neighbours([2, 0, 1], [(0, 1), (1, 2)]) == {1: 2}


def test_books_are_filtered_deduplicated_and_split(books: Path) -> None:
    report = curate(config_for(books))
    lists = FileLists.read(books.parent / "lists")
    assert lists.fingerprint == report["fingerprint"]
    splits = {split for split, _ in lists.entries.values()}
    assert splits == {"train", "validation", "test", "universe"} and report["documents"] == 36
    assert {name for name, (split, _) in lists.entries.items() if split == "universe"} == {
        "universe/one.txt",
        "universe/two.txt",
    }
    reasons = {entry["identifier"]: (entry["reasons"], entry.get("of")) for entry in report["dropped"]}
    assert reasons["short.txt"][0][:2] == ["min_characters", "min_words"]
    assert "max_repeated_lines" in reasons["loop.txt"][0]
    assert reasons["07.txt"] == (["exact_duplicate"], "copy.txt")  # the copy has more characters
    assert set(reasons) & {"08.txt", "edition.txt"} and reasons["09.txt"] == (["near_duplicate"], "universe/two.txt")
    assert len(reasons) + len(lists.entries) == 36
    kept = sum(amount["documents"] for amount in report["splits"].values())
    dropped = sum(amount["documents"] for amount in report["dropped_first_by"].values())
    assert kept == len(lists.entries) and kept + dropped == 36
    assert json.loads((books.parent / "lists" / "report.json").read_text())["config"]["filters"]["min_words"] == 100


def test_the_result_does_not_depend_on_workers_or_order(books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = curate(config_for(books))
    profiles = curating._profiles
    found = []

    def remembered(*arguments):
        found.extend(made := profiles(*arguments))
        return made

    monkeypatch.setattr(curating, "_profiles", remembered)
    config = config_for(books, out=str(books.parent / "again"))
    assert curate(config)["fingerprint"] == first["fingerprint"]
    lists, _ = curating.decide(config, found[::-1])
    assert lists.fingerprint == first["fingerprint"]
    monkeypatch.undo()
    monkeypatch.setattr("hotplate.train.data.processes.GROUP_BYTES", 40_000)
    parallel = curate(config_for(books, out=str(books.parent / "parallel"), workers=2))
    assert parallel["fingerprint"] == first["fingerprint"] and parallel["dropped"] == first["dropped"]


def test_a_data_set_holds_the_listed_books_in_their_splits(books: Path, tmp_path: Path, tokenizer) -> None:
    curate(config_for(books))
    lists = books.parent / "lists"
    prepared = PrepareConfig(
        source=str(books), out=str(tmp_path / "set"), file_lists=str(lists), tokenizer=str(tokenizer.path), workers=1
    )
    dataset = prepare(prepared)
    entries = FileLists.read(lists).entries
    assert dataset.splits == ("train", "validation", "test", "universe")
    for name in dataset.splits:
        split = dataset.split(name)
        texts = [dataset.tokenizer.decode(split.read(number)[1]) for number in range(split.documents)]
        chosen = sorted(identifier for identifier, (where, _) in entries.items() if where == name)
        assert sorted(texts) == sorted((books / path).read_text(encoding="utf-8") for path in chosen)
    assert dataset.manifest.source["file_lists"] == FileLists(entries).fingerprint
    assert Dataset.open(tmp_path / "set").fingerprint == dataset.fingerprint

    (books / "00.txt").write_text("changed " * 200)
    with pytest.raises(InputError, match=r"00\.txt: not the text that \w+\.list lists"):
        prepare(replace(prepared, out=str(tmp_path / "other")))
    (books / "00.txt").unlink()
    with pytest.raises(InputError, match=r"1 listed documents are not there, first '00\.txt'"):
        prepare(replace(prepared, out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


WRONG = {
    "nothing left": ({"filters": replace(LOOSE, min_words=10**6)}, "none is left to train on: min_words 3"),
    "no such pattern": ({"held_out": {"java": "java/*"}}, "--held-out java: no book's path matches 'java/\\*'"),
    "two patterns": ({"held_out": {"a": "universe/*", "b": "*one*"}}, "'universe/one.txt' matches .* a and b"),
    "no such source": ({"source": "nowhere"}, "nowhere: no such file or folder"),
    "no such language": ({"filters": replace(LOOSE, languages=("english",))}, "languages: 'english' is none of"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_mistakes_leave_nothing_and_say_what_is_wrong(books: Path, wrong: str) -> None:
    changes, message = WRONG[wrong]
    with pytest.raises(InputError, match=message):
        curate(config_for(books, **changes))
    assert not [path for path in books.parent.iterdir() if path not in (books, books.parent / ".lists.lock")]


@pytest.mark.parametrize(
    "make",
    [
        lambda: BooksConfig(source="x", out="y", held_out={"train": "*"}),
        lambda: BooksConfig(source="x", out="y", held_out={"../up": "*"}),
        lambda: BooksConfig(source="x", out="y", test=0.6, validation=0.4),
        lambda: BookFilters(min_characters=10, max_characters=9),
        lambda: DuplicateConfig(similarity=0.0),
    ],
)
def test_impossible_configs_are_refused(make) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("package", ["datasketch", "py3langid"])
def test_a_missing_package_is_named_with_its_extra(books: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.langid", None)
    language._identifier.cache_clear()
    with pytest.raises(InputError, match=rf"needs {package}: pip install 'hotplate\[books\]'"):
        duplicates.check_datasketch()
        language.check_languages(("en",))


@pytest.mark.parametrize("line", ["", '00\t"a"', f"{'0' * 64}\ta", f"{'0' * 64}\t3", f'{"0" * 64} "a"'])
def test_a_bad_line_of_a_list_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.list").write_text(f'{"0" * 64}\t"fine"\n{line}\n')
    with pytest.raises(InputError, match=r"train\.list, line 2: want a SHA-256"):
        FileLists.read(tmp_path)


def test_lists_hold_any_name_once(tmp_path: Path) -> None:
    lists = FileLists({'a "b"\n\u2028\té.txt': ("train", "0" * 64), "c": ("test", "1" * 64)})
    lists.write(tmp_path)
    assert FileLists.read(tmp_path) == lists
    (tmp_path / "more.list").write_text((tmp_path / "test.list").read_text())
    with pytest.raises(InputError, match=r"test\.list, line 1: 'c' is also in more\.list"):
        FileLists.read(tmp_path)
    with pytest.raises(InputError, match="no \\*.list files"):
        FileLists.read(tmp_path / "nowhere")
