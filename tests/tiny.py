"""The smallest run that is a run: its flags, and text to train it on."""

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "decoder-nano",
    "--model.layers=2",
    "--model.width=32",
    "--model.ffn=64",
    "--model.mixer.heads=2",
    "--model.mixer.head-width=16",
    "--model.vocab=2048",
    "--data.window=32",
    "--batch=8",
    "--device=cpu",
    "--precision=fp32",  # whatever the processor is good at
    "--threads=1",
    "--evaluation.tokens=512",
    "--evaluation.sample-tokens=8",
    "--run.log-steps=1",
]


def invented_text(words: int, seed: int) -> str:
    """Sentences over a skewed vocabulary in which each word narrows the next: something to learn."""
    random = np.random.default_rng(seed)
    letters = np.random.default_rng(0).choice(list("etaoinshrdlu"), (1500, 6))
    vocabulary = ["".join(row[: 2 + i % 5]) for i, row in enumerate(letters)]
    chosen, word = [], 0
    for number in range(words):
        word = (word * 7 + int(random.zipf(1.6))) % len(vocabulary)
        chosen.append(vocabulary[word] + (".\n" if number % 13 == 12 else ""))
    return " ".join(chosen)
