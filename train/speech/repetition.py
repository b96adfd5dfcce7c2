"""auto-BLEU: how much a text or a sequence of units repeats itself. Source: Lakhotia et al. 2021, section 3.2."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence


def auto_bleu(tokens: Sequence[Hashable], n: int = 2) -> float:
    """Share of the n-grams that occur at least twice in `tokens`, 0 to 1; 0 where there is none."""
    if n < 1:
        raise ValueError(f"auto_bleu: want n >= 1, got {n}")
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    counts = Counter(grams)
    return sum(counts[gram] > 1 for gram in grams) / len(grams) if grams else 0.0


def text_tokens(text: str) -> list[str]:
    """Words and punctuation marks; contractions part as in the Penn Treebank (did n't, it 's)."""
    parted = re.sub(r"(?i)\b(\w+?)(n't|'(?:s|re|ve|ll|d|m))\b", r"\1 \2", text)
    return re.findall(r"n't|'\w+|\w+|[^\w\s]", parted, re.IGNORECASE)
