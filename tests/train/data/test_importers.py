import numpy as np
import pytest

from hotplate.train.data.importers import ImportConfig, import_languini, import_llmc, import_nanogpt
from hotplate.train.errors import InputError

SEPARATOR = 2047


def _config(source, tmp_path, tokenizer, **options):
    return ImportConfig(source=str(source), out=str(tmp_path / "out"), tokenizer=str(tokenizer.path), **options)


@pytest.fixture
def texts(words):
    return [words(50, seed) for seed in range(30)]


def _text(dataset, name):
    split = dataset.split(name)
    texts = [dataset.tokenizer.decode(split.read(number)[1]) for number in range(split.documents)]
    assert split.bytes == sum(len(text.encode()) for text in texts)
    assert split.characters == sum(map(len, texts))
    return texts


@pytest.fixture
def books(tmp_path, tokenizer, texts):
    """Languini's folder: files/*.npy, and a list for training and one for testing."""
    folder = tmp_path / "books"
    (folder / "files").mkdir(parents=True)
    entries = []
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text).astype(np.uint16)
        np.save(folder / "files" / f"{number:02d}.npy", ids)
        entries.append([f"files/{number:02d}.npy", str(len(ids))])
    np.save(tmp_path / "train.npy", np.array(entries[:-3]))
    np.save(tmp_path / "test.npy", np.array(entries[-3:]))
    return folder


def _lists(tmp_path):
    return {"train": str(tmp_path / "train.npy"), "test": str(tmp_path / "test.npy")}


def test_languini(books, tmp_path, tokenizer, texts):
    dataset = import_languini(_config(books, tmp_path, tokenizer), _lists(tmp_path))
    assert _text(dataset, "train") == texts[:-3] and _text(dataset, "test") == texts[-3:]


def test_languini_without_lists(books, tmp_path, tokenizer, texts):
    dataset = import_languini(_config(books, tmp_path, tokenizer, test=0.2, validation=0.2))
    assert dataset.splits == ("train", "validation", "test")
    assert sorted(sum((_text(dataset, name) for name in dataset.splits), [])) == sorted(texts)


def _save(path, array, **options):
    np.save(path, array, **options)


LANGUINI_FAULTS = {
    "id": (
        lambda f, t: _save(f / "files/03.npy", np.array([5, 2048] + [5] * 9)),
        "03.npy: (id 2048 at offset 1|the file list)",
    ),
    "length": (
        lambda f, t: _save(f / "files/03.npy", np.array([5])),
        r"03\.npy: the file list says \d+ tokens, the file has 1",
    ),
    "pickle": (
        lambda f, t: _save(f / "files/03.npy", np.array([{}]), allow_pickle=True),
        r"03\.npy: cannot read it as \.npy",
    ),
    "shape": (
        lambda f, t: _save(f / "files/03.npy", np.zeros((2, 2))),
        r"03\.npy: want one dimension of integers, got float64",
    ),
    "garbage": (lambda f, t: (f / "files/03.npy").write_bytes(b"x"), r"03\.npy: cannot read it as \.npy"),
    "gone": (lambda f, t: (f / "files/03.npy").unlink(), r"03\.npy: cannot read it as \.npy"),
    "escape": (
        lambda f, t: _save(t / "train.npy", np.array([["../x.npy", "3"]])),
        r"train\.npy, entry 0: want a path inside",
    ),
    "list": (
        lambda f, t: _save(t / "train.npy", np.zeros(3)),
        r"train\.npy: want a file list, strings of shape \[N, 2\]",
    ),
}


@pytest.mark.parametrize("fault", LANGUINI_FAULTS)
def test_languini_faults(books, tmp_path, tokenizer, fault):
    damage, message = LANGUINI_FAULTS[fault]
    damage(books, tmp_path)
    with pytest.raises(InputError, match=message):
        import_languini(_config(books, tmp_path, tokenizer), _lists(tmp_path))
    assert not (tmp_path / "out").exists()


def test_languini_ids_without_lists(books, tmp_path, tokenizer):
    np.save(books / "files" / "03.npy", np.array([5, -1]))
    with pytest.raises(InputError, match=r"03\.npy: negative id -1 at token 1"):
        import_languini(_config(books, tmp_path, tokenizer))
    np.save(books / "files" / "03.npy", np.array([5, 2]))
    with pytest.raises(InputError, match=r"03\.npy: the end-of-document id 2 is inside a document, at token 1"):
        import_languini(_config(books, tmp_path, tokenizer))
    with pytest.raises(InputError, match=r"no \.npy files there"):
        import_languini(_config(tmp_path / "nowhere", tmp_path, tokenizer))


def _flat(tokenizer, texts, first):
    """Documents as nanoGPT (separator after each) or llm.c (before each) lays them out."""
    parts = [tokenizer.encode(text) for text in texts]
    return np.concatenate([[SEPARATOR, *part] if first else [*part, SEPARATOR] for part in parts])


def _write_llmc(path, ids, magic=20_240_520, version=1, dtype=np.uint16, count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())


def test_nanogpt(tmp_path, tokenizer, texts):
    source = tmp_path / "bins"
    source.mkdir()
    _flat(tokenizer, texts[:20], first=False).astype("<u2").tofile(source / "train.bin")
    _flat(tokenizer, texts[20:], first=False).astype("<u2").tofile(source / "val.bin")
    dataset = import_nanogpt(_config(source, tmp_path, tokenizer), SEPARATOR)
    assert _text(dataset, "train") == texts[:20] and _text(dataset, "validation") == texts[20:]


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20_240_520, 1, np.uint16), (20_240_801, 7, np.uint32)])
def test_llmc(tmp_path, tokenizer, texts, magic, version, dtype):
    path = tmp_path / "tokens.bin"
    _write_llmc(path, _flat(tokenizer, texts, first=True), magic, version, dtype)
    dataset = import_llmc(_config(path, tmp_path, tokenizer, test=0.2, validation=0.2), SEPARATOR)
    assert sorted(sum((_text(dataset, name) for name in dataset.splits), [])) == sorted(texts)
    assert len(dataset.splits) == 3


def test_separators_across_search_blocks(tmp_path, tokenizer, texts, monkeypatch):
    monkeypatch.setattr("hotplate.train.data.importers.SCAN", 7)
    _flat(tokenizer, texts, first=False).astype("<u2").tofile(tmp_path / "train.bin")
    assert _text(import_nanogpt(_config(tmp_path / "train.bin", tmp_path, tokenizer), SEPARATOR), "train") == texts


def test_nanogpt_faults(tmp_path, tokenizer):
    path = tmp_path / "train.bin"
    for content, message in (
        (b"", r"train\.bin: 0 bytes are not a whole"),
        (b"abc", r"train\.bin: 3 bytes are not a whole"),
        (
            np.array([5, 6, 7, 50_000], "<u2").tobytes(),
            r"train\.bin: id 50000 at offset 3 is outside the vocabulary of 2,048",
        ),
        (
            np.array([5, 2, 7], "<u2").tobytes(),
            r"train\.bin: the end-of-document id 2 .* token 1; .*--separator",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            import_nanogpt(_config(path, tmp_path, tokenizer))
    with pytest.raises(InputError, match=r"no \.bin files there"):
        import_nanogpt(_config(tmp_path / "nowhere", tmp_path, tokenizer))
    assert not (tmp_path / "out").exists()


def test_llmc_faults(tmp_path, tokenizer):
    path, ids = tmp_path / "x.bin", np.arange(5, 15)
    faults = [
        (
            {"magic": 1},
            "not an llm.c token file: want magic 20240520 version 1 or 20240801 version 7, got 1 version 1",
        ),
        ({"version": 7}, "got 20240520 version 7"),
        ({"count": 11}, "its header says 11 tokens, so 1,046 bytes, but it has 1,044"),
        ({"count": 0}, "its header says 0 tokens"),
    ]
    for options, message in faults:
        _write_llmc(path, ids, **options)
        with pytest.raises(InputError, match=rf"x\.bin: .*{message}"):
            import_llmc(_config(path, tmp_path, tokenizer))
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="x.bin: truncated: want a header of 1024 bytes, got 5"):
        import_llmc(_config(path, tmp_path, tokenizer))


def test_existing_folder(books, tmp_path, tokenizer):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out exists already"):
        import_languini(_config(books, tmp_path, tokenizer))
