"""Floors of the operations of a step: what each must move and compute, and in words where the time beyond that goes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hotplate.bench.rates import Rates

WORDS = 5  # gaps told
SMALL_MS = 0.02  # a call so short that starting it is most of it


@dataclass
class Work:
    """Of all calls of one operation."""

    calls: int = 0
    moved_bytes: int = 0  # operands and results once; nothing for a view
    flops: int = 0
    floor_ms: float = 0.0


class Counted(TorchDispatchMode):
    """Work by operation, under the profiler's names; what happens inside an operation of ours is not seen."""

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates = rates
        self.work: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), result))
        flops = flop_registry.get(func.overloadpacket)
        count = int(flops(*args, **kwargs, out_val=result)) if flops is not None else 0
        before = {x.untyped_storage().data_ptr() for x in given}
        view = not func._schema.is_mutable and all(x.untyped_storage().data_ptr() in before for x in made)
        moved = 0 if view else sum(x.numel() * x.element_size() for x in (*given, *made))
        work = self.work[str(func.overloadpacket).replace(".", "::")]
        work.calls += 1
        work.moved_bytes += moved
        work.flops += count
        seconds = max(moved / self.rates.bytes_per_s, count / self.rates.matmul_flops_per_s)
        work.floor_ms += 1e3 * seconds
        return result


def count(update: Callable[[], None], rates: Rates) -> Mapping[str, Work]:
    """Work of one call of `update` by operation."""
    with Counted(rates) as seen:
        update()
    return seen.work


def with_floors(operations: Sequence[dict[str, Any]], work: Mapping[str, Work]) -> list[dict[str, Any]]:
    """The rows of a profile with what their operations move, compute, and take at the least; None where unknown."""
    rows = []
    for row in operations:
        known = work.get(row["name"])
        rows.append(
            row
            | {
                "moved_bytes": known and known.moved_bytes,
                "flops": known and known.flops,
                "floor_ms": known and known.floor_ms,
            }
        )
    return rows


def in_words(operations: Sequence[Mapping[str, Any]], step_ms: float) -> list[str]:
    """The largest gaps between time and floor, a sentence each."""
    gaps = [(row["milliseconds"] - (row["floor_ms"] or 0.0), row) for row in operations]
    told = []
    for gap, row in sorted(gaps, key=lambda pair: -pair[0])[:WORDS]:
        each = row["milliseconds"] / max(row["calls"], 1.0)
        if row["floor_ms"] is None:
            why = "its floor is not known: what it does inside is not seen"
        elif each < SMALL_MS:
            why = f"{row['calls']:.0f} calls of {each:.3f} ms: starting them is most of it"
        else:
            bound = "arithmetic" if row["flops"] else "memory traffic"
            why = f"at {row['floor_ms'] / row['milliseconds']:.0%} of what {bound} allows, {row['calls']:.0f} calls"
        told.append(f"{row['name']}: {gap:.2f} ms beyond its floor, {gap / step_ms:.0%} of the step; {why}")
    rest = step_ms - sum(row["milliseconds"] for row in operations)
    if rest > 0.02 * step_ms:
        told.append(f"outside all operations: {rest:.2f} ms, {rest / step_ms:.0%} of the step; the host is the limit")
    return told
