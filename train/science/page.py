"""A static page in one file: sections of text, figures and tables; styles inline, nothing fetched."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from hotplate.train.science.figures import PALETTE, Drawing

STYLES = Path(__file__).with_name("page.css")


class Markup(str):
    """Text that is HTML already; all other text is escaped."""


def markup(text: str) -> Markup:
    """`text` as HTML."""
    return text if isinstance(text, Markup) else Markup(escape(text))


def dot(colour: str, text: str) -> Markup:
    """Text behind a dot in a palette colour."""
    return Markup(f'<span class="dot" style="background: var(--{colour})"></span>{markup(text)}')


def with_range(value: str, spread: str) -> Markup:
    """A number, and its spread in a quieter tone."""
    return Markup(f"{markup(value)} <i>{markup(spread)}</i>")


def bar(share: float) -> Markup:
    """A share of one as a bar and a percentage."""
    filled = 100 * min(1.0, max(0.0, share))
    return Markup(f'<span class="bar"><span style="width: {filled:.0f}%"></span></span>{100 * share:.0f}%')


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """The first column is left-aligned, numbers line up."""
    head = "".join(f"<th>{markup(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{markup(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return Markup(f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>')


def paragraph(text: str, kind: str = "") -> Markup:
    return Markup(f'<p class="{kind}">{markup(text)}</p>' if kind else f"<p>{markup(text)}</p>")


def drawing(drawn: Drawing) -> Markup:
    """The figure and its caption."""
    return Markup(f"<figure>{drawn.svg()}<figcaption>{markup(drawn.caption)}</figcaption></figure>")


def folded(summary: str, inside: str) -> Markup:
    return Markup(f"<details><summary>{markup(summary)}</summary>{markup(inside)}</details>")


def code(lines: Iterable[str]) -> Markup:
    return Markup(f"<pre>{escape(chr(10).join(lines))}</pre>")


def findings(items: Iterable[tuple[str, str]]) -> Markup:
    """The page's main numbers: (number, what it is)."""
    cells = "".join(f"<li><b>{markup(number)}</b><span>{markup(what)}</span></li>" for number, what in items)
    return Markup(f'<ul class="findings">{cells}</ul>')


def section(title: str, *parts: str) -> Markup:
    return Markup(f"<section><h2>{markup(title)}</h2>\n" + "\n".join(map(markup, parts)) + "</section>")


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """The whole document."""

    def variables(mode: int) -> str:
        return " ".join(f"--{name}: {pair[mode]};" for name, pair in PALETTE.items())

    palette = f":root {{ {variables(0)} }} @media (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{palette}\n{STYLES.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>\n<h1>{escape(title)}</h1>\n{paragraph(lead, 'lead')}\n"
        + "\n".join(markup(part) for part in sections)
        + "\n</main></body></html>\n"
    )
