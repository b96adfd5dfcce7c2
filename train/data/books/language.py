"""Which language a text is in, by py3langid: a naive Bayes model over byte n-grams, shipped in its package."""

from functools import cache

from hotplate.train.errors import InputError

SAMPLES = 16
SAMPLE_CHARACTERS = 1_000


def language_share(text: str, languages: tuple[str, ...]) -> float:
    """The share of `SAMPLES` passages, spread evenly over `text`, whose likeliest language is in `languages`.

    Voting by passage keeps a bilingual book apart from an English one with French quotations.
    """
    identifier = _identifier()
    last = max(0, len(text) - SAMPLE_CHARACTERS)
    starts = sorted({round(last * number / (SAMPLES - 1)) for number in range(SAMPLES)})
    hits = [identifier.classify(text[start : start + SAMPLE_CHARACTERS])[0] in languages for start in starts]
    return sum(hits) / len(hits)


def check_languages(languages: tuple[str, ...]) -> None:
    """InputError when the package is missing or a code is not one that it knows."""
    if languages:
        known = set(_identifier().nb_classes)
        if unknown := [code for code in languages if code not in known]:
            raise InputError(f"--filters.languages: {unknown[0]!r} is none of {', '.join(sorted(known))}")


@cache
def _identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise InputError("finding a text's language needs py3langid: pip install 'hotplate[books]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)
