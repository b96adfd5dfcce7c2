import hashlib

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from hotplate.train.data.token_bytes import json_table
from hotplate.train.data.tokenizer import Tokenizer, train_tokenizer
from hotplate.train.errors import InputError

AWKWARD = [
    "",
    "a\r\nb\n\n\n\tc  d   ",
    "<D>",
    "x<D><D>y <D",
    "<|endoftext|> </s> <pad> <unk> <0x0A>",
    "a\u2581b \u2581\u2581<D>\u2581",
    "\0 a\0b\0",
    "na\u00efve \u6f22\u5b57 \U0001f600 e\u0301 \u200b\u00a0\u2028\ufeff\ufffd",
    "1234567890 3.14",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text("<D>\u2581 a|\n", max_size=30)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory, words):
    """A GPT-2 style tokenizer, its end of text marked special."""
    return _train_json(tmp_path_factory.mktemp("json") / "t.json", words(3000, 0))


def _train_json(path, text, normalizer=None, special=True):
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    if normalizer is not None:
        model.normalizer = normalizer
    symbols = ["<|endoftext|>"] if special else []
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=symbols, initial_alphabet=alphabet)
    model.train_from_iterator([text], trainer)
    if not special:
        model.add_tokens(["<|endoftext|>"])
    model.save(str(path))
    return path


def _check_lossless(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod not in ids
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())
    assert tokenizer.character_lengths()[ids].sum() == len(text)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_survives(tokenizer, byte_level, text):
    _check_lossless(tokenizer, text)
    _check_lossless(Tokenizer.load(byte_level), text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_any_text_survives(tokenizer, byte_level, text):
    _check_lossless(tokenizer, text)
    _check_lossless(Tokenizer.load(byte_level), text)


def test_end_of_document_that_is_not_special_is_still_not_text(tmp_path, words):
    path = _train_json(tmp_path / "t.json", words(500, 0), special=False)
    _check_lossless(Tokenizer.load(path), "a <|endoftext|><|endoftext|> b")


def test_ids_are_laid_out_as_in_languini(tokenizer):
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    assert (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id()) == (0, 1, -1, -1)
    assert model.id_to_piece(2) == "<D>" and tokenizer.eod == 2 and tokenizer.vocab == 2048
    assert [model.id_to_piece(3 + byte) for byte in (0, 255)] == ["<0x00>", "<0xFF>"]
    assert tokenizer.byte_lengths()[:3].tolist() == [0, 0, 0]
    assert (tokenizer.byte_lengths()[3:259] == 1).all()
    assert len(tokenizer.encode("77777")) == 5  # digits are never merged


def test_training_is_deterministic(tokenizer, words, tmp_path):
    texts = [words(4000, seed) for seed in range(4)]
    again = train_tokenizer(texts, 2048, tmp_path / "again.model")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.fingerprint == hashlib.sha256(tokenizer.path.read_bytes()).hexdigest()


@pytest.mark.parametrize("vocab", [0, 2047, 131_073])
def test_vocab_out_of_range(tmp_path, vocab):
    with pytest.raises(InputError, match="outside 2,048 to 131,072"):
        train_tokenizer(["text"], vocab, tmp_path / "t.model")


def test_too_little_text_to_train_on(tmp_path):
    with pytest.raises(InputError, match="cannot train a tokenizer of 2,048 ids"):
        train_tokenizer(["too little text"], 2048, tmp_path / "t.model")
    assert not (tmp_path / "t.model").exists()


def test_end_of_document_option(tokenizer, byte_level):
    assert Tokenizer.load(byte_level).eod == 0
    assert Tokenizer.load(byte_level, eod=5).eod == 5
    assert Tokenizer.load(tokenizer.path, eod="<pad>").eod == 0
    assert Tokenizer.load(tokenizer.path, eod="1999").eod == 1999
    with pytest.raises(InputError, match=r"no end-of-document symbol <nope> among its 2,048 ids; .*--eod"):
        Tokenizer.load(tokenizer.path, eod="<nope>")


def test_no_end_of_document(tmp_path):
    model = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    model.decoder = decoders.ByteLevel()
    model.save(str(tmp_path / "t.json"))
    with pytest.raises(InputError, match=r"t\.json: no end-of-document symbol <D> or "):
        Tokenizer.load(tmp_path / "t.json")


def test_lossy_tokenizers_are_refused(tmp_path, words):
    path = _train_json(tmp_path / "lower.json", words(500, 0), normalizers.Lowercase())
    with pytest.raises(InputError, match=r"lower\.json: the tokenizer is not lossless: byte 0"):
        Tokenizer.load(path)
    model = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "</s>": 1}, unk_token="[UNK]"))
    model.decoder = decoders.WordPiece()
    model.save(str(tmp_path / "wordpiece.json"))
    with pytest.raises(InputError, match=r"wordpiece\.json: cannot derive .* \['WordPiece'\]"):
        Tokenizer.load(tmp_path / "wordpiece.json")


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b'{"version": "1.0", "model": 3}', b"\x0a\xff\xff"])
def test_files_that_are_no_tokenizer(tmp_path, content):
    (tmp_path / "bad.model").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.model: "):
        Tokenizer.load(tmp_path / "bad.model")


@pytest.mark.parametrize("token", [1 << 40, -1, 2.5])
def test_an_id_that_would_take_all_memory_is_refused(token):
    described = {"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"a": 0, "b": token}}}
    with pytest.raises(InputError, match=r"t\.json: want ids of 0 to 4,194,303"):
        json_table(described, "t.json")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="none.json: cannot read the tokenizer: No such file"):
        Tokenizer.load(tmp_path / "none.json")


def test_lone_surrogate(tokenizer):
    with pytest.raises(InputError, match="character 2 of the text is the lone surrogate"):
        tokenizer.encode("ab\ud800")


def test_decode_refuses_foreign_ids(tokenizer):
    with pytest.raises(ValueError, match=r"want ids in \[0, 2048\), got 5 to 2048"):
        tokenizer.decode([5, 2048])
