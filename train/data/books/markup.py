"""Plain text out of what packages hold: HTML manuals, JSON extracts, source files."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser

HIDDEN = frozenset({"script", "style", "head", "nav"})
BLOCKS = frozenset(
    ("blockquote", "br", "dd", "div", "dl", "dt", "hr", "li", "ol", "p", "pre", "section", "table", "tr", "ul")
    + tuple(f"h{level}" for level in range(1, 7))
)
LEADING_COMMENT = re.compile(r"\A\s*/\*.*?\*/\s*", re.DOTALL)


def extracts(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    """(title, text) of each record of a JSON object {title: {"extract": text, ...}}, in the file's order."""
    for title, record in json.loads(content).items():
        yield title, record["extract"]


def source_file(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    """A source file without the comment that it opens with: the licence, the same in every file."""
    yield name, LEADING_COMMENT.sub("", content.decode())


def page(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    """The visible text of an HTML page: a line per block, white space as a browser shows it, `pre` as it is."""
    reader = _PageText()
    reader.feed(content.decode())
    reader.close()
    yield name, reader.text()


class _PageText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hidden = self._verbatim = 0

    def handle_starttag(self, tag: str, attributes) -> None:
        self._hidden += tag in HIDDEN
        self._verbatim += tag == "pre"
        if tag in BLOCKS:
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in HIDDEN
        self._verbatim -= tag == "pre"
        if tag in BLOCKS:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        lines = [line.rstrip() for line in "".join(self._parts).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
