"""The UTF-8 bytes that each token id stands for, read from a tokenizer's own tables.

A tokenizer is usable when decoding is concatenation: text bytes = join(table[id] for id in ids). Byte counts,
and with them every per-byte metric, are then exact however a document is cut into rows.
"""

import numpy as np

from hotplate.train.errors import InputError

MOST_IDS = 1 << 22  # ten times the largest vocabularies: a damaged id must not ask for all memory
SPACE = "\u2581"  # SentencePiece's visible stand-in for the space


def sentencepiece_table(model) -> list[bytes]:
    """Bytes of each id of a `SentencePieceProcessor`; control and unknown symbols have none."""
    table = []
    for token in range(model.vocab_size()):
        piece = model.id_to_piece(token)
        if model.is_control(token) or model.is_unknown(token):
            table.append(b"")
        elif model.is_byte(token):
            table.append(bytes([int(piece[3:5], 16)]))  # a byte piece is written <0xAB>
        else:
            table.append(piece.replace(SPACE, " ").encode())
    return table


def json_table(definition: dict, path: str) -> list[bytes]:
    """Bytes of each id of a Hugging Face `tokenizers` JSON file, from its vocabulary and decoder.

    Raises InputError for a decoder that is not a concatenation of bytes (WordPiece, BPEDecoder, none).
    """
    to_bytes = _piece_decoder(definition, path)
    pieces = definition["model"]["vocab"]
    if isinstance(pieces, list):  # Unigram: [[piece, score], ...]
        pieces = {piece: token for token, (piece, _) in enumerate(pieces)}
    added = definition.get("added_tokens") or []
    ids = [*pieces.values(), *(token["id"] for token in added)]
    if not all(isinstance(token, int) and 0 <= token < MOST_IDS for token in ids):
        raise InputError(f"{path}: want ids of 0 to {MOST_IDS - 1:,}")
    table = [b""] * (max(ids) + 1)
    for piece, token in pieces.items():
        table[token] = to_bytes(piece)
    for token in added:
        table[token["id"]] = b"" if token["special"] else token["content"].encode()
    return table


def character_counts(table: list[bytes]) -> np.ndarray:
    """int32 [V]: characters that start in each id: its bytes that do not continue a character."""
    return np.array([sum(byte & 0xC0 != 0x80 for byte in entry) for entry in table], np.int32)


def _piece_decoder(definition: dict, path: str):
    kinds = _decoder_kinds(definition.get("decoder"))
    if "ByteLevel" in kinds:
        alphabet = {character: byte for byte, character in enumerate(_byte_level_alphabet())}
        # A piece with a character outside the alphabet is a symbol by name, not text.
        return lambda piece: bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else b""
    if kinds & {"ByteFallback", "Metaspace", "Replace"}:
        return _spaced_piece
    raise InputError(
        f"{path}: cannot derive the bytes of each token from the decoder {sorted(kinds) or 'none'}; "
        "use a byte-level BPE, or a BPE or Unigram with byte fallback"
    )


def _decoder_kinds(decoder: dict | None) -> set[str]:
    if decoder is None:
        return set()
    kinds = {decoder["type"]}
    for part in decoder.get("decoders", []):
        kinds |= _decoder_kinds(part)
    return kinds


def _spaced_piece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def _byte_level_alphabet() -> list[str]:
    """GPT-2's character for each of the 256 bytes: itself if printable, else the next from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    alphabet, following = [], 256
    for byte in range(256):
        alphabet.append(chr(byte if byte in printable else following))
        following += byte not in printable
    return alphabet
