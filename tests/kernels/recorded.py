"""Records of machine code: a file holds by configuration, by version of Triton, what it compiled to."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import triton

HERE = Path(__file__).resolve().parent
Records = dict[str, dict[str, dict[str, Any]]]
Shipped = TypeVar("Shipped")


def records(room: str) -> Records:
    """What budgets/<room>.json holds; empty where there is none."""
    path = HERE / "budgets" / f"{room}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def rebaseline(room: str, shipped: Sequence[Shipped], record: Callable[[Shipped], dict[str, int]]) -> None:
    """Writes what the installed Triton makes of every shipped configuration next to what other versions made; drops
    what is shipped no more."""
    known = {str(this) for this in shipped}
    body = {name: versions for name, versions in records(room).items() if name in known}
    for this in shipped:
        body.setdefault(str(this), {})[triton.__version__] = record(this)
        text = json.dumps(body, indent=1, sort_keys=True) + "\n"
        (HERE / "budgets" / f"{room}.json").write_text(text, encoding="utf-8")
        print(this, body[str(this)][triton.__version__], flush=True)


def assert_as_recorded(room: str, this: Shipped, record: Callable[[Shipped], dict[str, int]]) -> None:
    """Compiled again, `this` is what its record of the installed Triton says."""
    versions = records(room)[str(this)]
    assert triton.__version__ in versions, (
        f"no budget for Triton {triton.__version__}, only for {sorted(versions)}; "
        f"read the new counts and record them: python tests/kernels/test_{room}_compiled.py"
    )
    assert record(this) == versions[triton.__version__]
