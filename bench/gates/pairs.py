"""Whether one tree is slower than another, from paired times: a sequential test with a stated rate of false alarms.

d = log(head / base) of a pair, k steps of each in random order, every second pair in the reverse of the one before,
so that neither tree comes first more often. After 20, 40 and 80 pairs the order statistics of d give an interval for
its median that needs no distribution (sign test), at ALPHA / looks per look. Slower: the interval lies above a ratio
of 1.02. Faster: below 0.97. No slower: below 1.04. Else more pairs, and after the last look inconclusive, which
blocks nothing. By the union over looks an unchanged tree is called slower with a probability of at most ALPHA / 2, as
far as pairs are independent: what two processes keep between them for as long as they live (worker.py) is common to
all of theirs. So `hotplate bench ratio` asks two more before it calls a tree slower.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

LOOKS = (20, 40, 80)
ALPHA = 0.01
SLOWER, NO_SLOWER, FASTER = 1.02, 1.04, 0.97
Verdict = Literal["slower", "no slower", "faster", "inconclusive"]
Time = Callable[[], float]  # processor seconds of k steps


@dataclass(frozen=True)
class Finding:
    """The ratio head / base, its interval at the last look, and what it says."""

    verdict: Verdict
    ratio: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.verdict}: ratio {self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.pairs} pairs"


def rank(n: int, alpha: float) -> int:
    """The largest r for which the r-th smallest and the r-th largest of n values enclose the median with probability
    of at least 1 - alpha; 0 where n is too small."""
    below, r = 0.5**n, 0  # P(fewer than r + 1 values lie below the median)
    while 2 * below <= alpha:
        r += 1
        below += math.comb(n, r) * 0.5**n
    return r


def judge(logs: Sequence[float], alpha: float) -> Finding:
    """What the pairs so far say at one look."""
    n, ordered = len(logs), sorted(logs)
    r = rank(n, alpha)
    low, high = (ordered[r - 1], ordered[n - r]) if r else (-math.inf, math.inf)
    middle = 0.5 * (ordered[(n - 1) // 2] + ordered[n // 2])
    verdict: Verdict = "inconclusive"
    if low > math.log(SLOWER):
        verdict = "slower"
    elif high < math.log(FASTER):
        verdict = "faster"
    elif high < math.log(NO_SLOWER):
        verdict = "no slower"
    return Finding(verdict, math.exp(middle), math.exp(low), math.exp(high), n)


def compare(head: Time, base: Time, seed: int = 0, looks: Sequence[int] = LOOKS) -> Finding:
    """Pairs in random but balanced order until a look decides or the last has passed."""
    draw, logs, head_first = random.Random(seed), list[float](), False
    found = Finding("inconclusive", math.nan, 0.0, math.inf, 0)
    for look in looks:
        while len(logs) < look:
            head_first = draw.random() < 0.5 if len(logs) % 2 == 0 else not head_first
            if head_first:
                mine = head()
                theirs = base()
            else:
                theirs = base()
                mine = head()
            logs.append(math.log(mine / theirs))
        found = judge(logs, ALPHA / len(looks))
        if found.verdict != "inconclusive":
            break
    return found
