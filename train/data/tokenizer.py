"""One tokenizer type over SentencePiece models and Hugging Face `tokenizers` JSON files.

V is the number of ids. `eod` (the end-of-document symbol D) is never produced by text: a literal "<D>" in a
document is encoded as ordinary characters.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from hotplate.train.data.token_bytes import SPACE, character_counts, json_table, sentencepiece_table
from hotplate.train.errors import InputError

EOD_NAMES = ("<D>", "<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
SMALLEST_VOCAB, LARGEST_VOCAB = 2_048, 131_072  # the range of Languini's tokenizers
SENTENCE_CHARACTERS = 4_000  # a training text is cut into sentences of this length, newlines included
MAX_SENTENCES = 2_000_000  # as Languini

PROBE = (
    "A line.\n\n\ttabs  and   spaces \r\n<D> </s> <|endoftext|> 12345 "
    "na\u00efve \u6f22\u5b57 \U0001f600 e\u0301 \u2581\u200b\0."
)


class Tokenizer:
    """Text to ids and back, losslessly.

    Attributes: `path`; `vocab` (V, the number of ids); `eod` (id of D); `fingerprint` (SHA-256 of the file,
    hex).
    """

    def __init__(self, path: Path, content: bytes, model, table: list[bytes], eod: int):
        self.path, self.eod, self.vocab = path, eod, len(table)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._model = model
        self._is_sentencepiece = isinstance(model, sentencepiece.SentencePieceProcessor)
        self._eod_text = self._name(eod)
        self._table = [*table[:eod], b"", *table[eod + 1 :]]
        self._bytes = np.array([len(entry) for entry in self._table], np.int32)

    @classmethod
    def load(cls, path: str | Path, eod: str | int | None = None) -> "Tokenizer":
        """Open a SentencePiece `.model` or a `tokenizers` JSON file.

        `eod` is the end-of-document symbol: its id, or its text (or id in digits); by default the first of
        `EOD_NAMES` it has.
        Raises InputError: unreadable file, no end-of-document symbol, a tokenizer that loses text.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        model: Any
        try:
            if content.lstrip()[:1] == b"{":
                model = tokenizers.Tokenizer.from_str(content.decode())
                model.encode_special_tokens = True  # "<|endoftext|>" in a document is text
                model.no_truncation()
                model.no_padding()
                table = json_table(json.loads(content), str(path))
            else:
                model = sentencepiece.SentencePieceProcessor(model_proto=content)
                table = sentencepiece_table(model)
                if not table:
                    raise InputError(f"{path}: the tokenizer file is empty")
        except InputError:
            raise
        except Exception as error:  # both libraries raise bare Exception or RuntimeError for a bad file
            raise InputError(f"{path}: neither a SentencePiece model nor a tokenizers JSON file: {error}") from error
        loaded = cls(path, content, model, table, _find_eod(model, eod, len(table), path))
        loaded.encode_verified(PROBE)
        return loaded

    def encode(self, text: str) -> np.ndarray:
        """int64 ids of `text`, without D. Raises InputError if `text` holds a lone surrogate."""
        return np.array(self._encode_text(text), np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def encode_verified(self, text: str) -> np.ndarray:
        """`encode`, and InputError unless the ids decode to exactly `text`."""
        ids = self.encode(text)
        want, got = text.encode(), self._join(ids)
        if want != got:
            at = next(
                (i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b),
                min(len(want), len(got)),
            )
            raise InputError(
                f"{self.path}: the tokenizer is not lossless: byte {at} of the text is "
                f"{want[at : at + 12]!r} but decodes "
                f"to {got[at : at + 12]!r}; use one without normalisation, prefix space or unknown tokens"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; D and control symbols give nothing, incomplete characters U+FFFD."""
        return self._join(np.asarray(ids, np.int64)).decode(errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of each id. Summed over a document's ids: `len(text.encode())`."""
        return self._bytes.copy()

    def character_lengths(self) -> np.ndarray:
        """int32 [V]: characters that start in each id. Summed over a document's ids: `len(text)`."""
        return character_counts(self._table)

    def _join(self, ids: np.ndarray) -> bytes:
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab:
            raise ValueError(f"decode: want ids in [0, {self.vocab}), got {ids.min()} to {ids.max()}")
        return b"".join([self._table[token] for token in ids.tolist()])

    def _name(self, token: int) -> str:
        return self._model.id_to_piece(token) if self._is_sentencepiece else self._model.id_to_token(token)

    def _encode_text(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"character {error.start} of the text is the lone surrogate {text[error.start]!r}"
            ) from error
        if not self._is_sentencepiece:
            return self._encode_around_eod(text, lambda part: self._model.encode(part, add_special_tokens=False).ids)
        if SPACE not in text:
            return self._encode_around_eod(text, self._model.encode)
        # SentencePiece would turn a literal U+2581 into a space; as three byte tokens it survives.
        between = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        first, *rest = (self._encode_around_eod(part, self._model.encode) for part in text.split(SPACE))
        return first + [token for ids in rest for token in between + ids]

    def _encode_around_eod(self, text: str, encode) -> list[int]:
        """Encode `text`, cutting each literal D after its first character so that it stays text."""
        if self._eod_text not in text:
            return encode(text)
        parts = text.split(self._eod_text)
        head, tail = self._eod_text[:1], self._eod_text[1:]
        last = len(parts) - 1
        cut = [tail * (i > 0) + part + head * (i < last) for i, part in enumerate(parts)]
        return [token for part in cut for token in encode(part)]


def train_tokenizer(texts: Iterable[str], vocab: int, path: str | Path) -> Tokenizer:
    """Train Languini's SentencePiece BPE on `texts`, write it to `path` (.model) and load it.

    Pad is id 0, unknown 1, D 2, bytes 3..258; identity normalisation, no prefix space, whitespace kept,
    digits split, pieces of at most 99 characters. The same texts give the same file.
    Raises InputError: `vocab` outside 2,048..131,072, or more than the texts can fill.
    Source: Languini Kitchen, vocabs/create_spm_vocab.ipynb.
    """
    if not SMALLEST_VOCAB <= vocab <= LARGEST_VOCAB:
        raise InputError(f"vocab {vocab} is outside {SMALLEST_VOCAB:,} to {LARGEST_VOCAB:,}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            hard_vocab_limit=True,
            input_sentence_size=MAX_SENTENCES,
            shuffle_input_sentence=False,
            max_sentence_length=4 * SENTENCE_CHARACTERS,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            user_defined_symbols=["<D>"],
            byte_fallback=True,
            max_sentencepiece_length=99,
            split_by_unicode_script=True,
            split_by_number=True,
            split_by_whitespace=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            allow_whitespace_only_pieces=True,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"cannot train a tokenizer of {vocab:,} ids on this text: {error}; give more text or a smaller vocab"
        ) from error
    Path(path).write_bytes(model.getvalue())
    return Tokenizer.load(path)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Training sentences; the symbols that SentencePiece reserves are left out, they never become pieces."""
    for text in texts:
        clean = text.replace("\r\n", "\n").replace("\0", "").replace(SPACE, "").replace("<D>", "").strip()
        for start in range(0, len(clean), SENTENCE_CHARACTERS):
            yield clean[start : start + SENTENCE_CHARACTERS]


def _find_eod(model, wanted: str | int | None, vocab: int, path: Path) -> int:
    names = EOD_NAMES if wanted is None else (wanted,)
    for name in names:
        token = _token_of(model, name) if isinstance(name, str) else None
        if token is not None:
            return token
    if wanted is not None and str(wanted).isdecimal() and int(wanted) < vocab:
        return int(wanted)
    raise InputError(
        f"{path}: no end-of-document symbol {' or '.join(map(str, names))} among its {vocab:,} ids; name one with --eod"
    )


def _token_of(model, name: str) -> int | None:
    if not isinstance(model, sentencepiece.SentencePieceProcessor):
        return model.token_to_id(name)
    token = model.piece_to_id(name)
    return token if model.id_to_piece(token) == name else None
