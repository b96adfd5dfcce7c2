"""Feeds a parser with mutations until it has had its number, or does something that it must not."""

import random
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hotplate.bench.fuzz.mutations import mutated
from hotplate.bench.fuzz.target import Target

HANG_SECONDS = 5
MOST_FINDINGS = 20
POOL = 256  # accepted mutations that others are made from,
FRESH = 0.5  # so often


class Hang(Exception):
    """The parser took too long."""


@dataclass
class Findings:
    """What became of a target's inputs."""

    target: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest_ms: float = 0.0
    defects: dict[str, str] = field(default_factory=dict)  # where it came from -> the input, hex, cut

    @property
    def clean(self) -> bool:
        return not self.defects


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hang(f"more than {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(target: Target, inputs: int, seed: int) -> Findings:
    """`inputs` mutations of the target's seeds, and of mutations that it accepted; the same ones for the same seed."""
    drawn, found = random.Random(f"{target.name} {seed}"), Findings(target.name)
    fresh: deque[bytes] = deque(maxlen=POOL)
    longest = 2 * max(map(len, target.seeds))
    began = time.perf_counter()
    assert all(target.accepts(content) for content in target.seeds), f"{target.name}: a seed is refused"
    with _alarm():
        for _ in range(inputs):
            if fresh and drawn.random() < FRESH:
                content = mutated(fresh[drawn.randrange(len(fresh))], drawn)
            else:
                content = mutated(target.seeds[drawn.randrange(len(target.seeds))], drawn)
            signal.alarm(HANG_SECONDS)
            before = time.perf_counter()
            try:
                accepted = target.accepts(content)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                found.defects.setdefault(_where(error), content[:4096].hex())
                accepted = False
            found.slowest_ms = max(found.slowest_ms, 1e3 * (time.perf_counter() - before))
            found.inputs += 1
            if accepted:
                found.accepted += 1
                if len(content) <= longest:
                    fresh.append(content)
            if len(found.defects) >= MOST_FINDINGS:
                break
    target.path.write_bytes(target.seeds[0])
    found.seconds = time.perf_counter() - began
    return found


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    return f"{type(error).__name__} at {last.filename.rsplit('/', 2)[-1]}:{last.lineno}: {str(error)[:120]}"
