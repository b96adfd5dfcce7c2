"""Which implementation a call of attention runs: one that is named, or what the table of `auto` names.

A name that cannot serve raises with every reason. `auto` is a rule: AUTO's entry for the device where that can serve
the problem, else eager; and eager for a cache, whose keys grow by a token a call: listing tiles (Triton) or copying the
keys (C) would cost more than the call. The choice is logged once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from hotplate.kernels import backends
from hotplate.kernels.attention import adapters, eager, native, reference, registered
from hotplate.kernels.attention.problem import Call, Problem, Result
from hotplate.kernels.checks import want
from hotplate.kernels.launch import TRITON_DTYPES, constant, interpreting

log = logging.getLogger(__name__)

MOST_WIDTH = {torch.float32: 128, torch.float16: 256, torch.bfloat16: 256}  # of a head that Triton can hold
# The fastest by the recorded benchmarks (bench/results/): C on a CPU, where it was measured to be (native.pays). No GPU
# has been measured: Triton stands there by its machine code.
AUTO = {"cpu": "native", "cuda": "triton"}


@dataclass(frozen=True)
class Backend:
    """reasons: why it cannot serve a problem (nothing: it can). attend: its result. biased: whether its backward makes
    the gradient of a call's bias, too."""

    reasons: Callable[[Problem], list[str]]
    attend: Callable[[Call], Result]
    distribution: str = "torch"
    biased: bool = False


def _none(problem: Problem) -> list[str]:
    return []


def triton_reasons(problem: Problem) -> list[str]:
    why = []
    if not backends.installed("triton"):
        why.append("triton is not installed")
    if problem.device.type == "cuda":
        if (found := backends.capability(problem.device) or (0, 0)) < (8, 0):
            why.append(f"needs compute capability 8.0 or later, this device has {found}")
    elif not interpreting():
        why.append(f"needs a CUDA tensor, got one on {problem.device} (TRITON_INTERPRET=1 runs it there for debugging)")
    if problem.dtype not in TRITON_DTYPES:
        why.append(f"needs float32, bfloat16 or float16, got {str(problem.dtype).removeprefix('torch.')}")
    elif MOST_WIDTH[problem.dtype] < problem.K:
        why.append(f"needs a head width of at most {MOST_WIDTH[problem.dtype]} in this dtype, got {problem.K}")
    if not problem.positive_scale:
        why.append("needs a scale above 0")
    return why


def _reference(call: Call) -> Result:
    return reference.attention(call.q, call.k, call.v, call.cu_seqlens, call.scale, call.window, call.softcap)


BACKENDS = {
    "triton": Backend(triton_reasons, registered.attention, "triton", biased=True),
    "native": Backend(native.reasons, native.attention, "hotplate"),
    "flash": Backend(adapters.flash_reasons, adapters.flash, "flash-attn"),
    "fa3": Backend(adapters.fa3_reasons, adapters.fa3, "flash-attn-3"),
    "fa4": Backend(adapters.fa4_reasons, adapters.fa4, "flash-attn-4"),
    "varlen": Backend(adapters.varlen_reasons, adapters.varlen),
    "cudnn": Backend(adapters.cudnn_reasons, adapters.cudnn),
    "flex": Backend(adapters.flex_reasons, adapters.flex),
    "xformers": Backend(adapters.xformers_reasons, adapters.xformers, "xformers"),
    "eager": Backend(_none, eager.attention),
    "reference": Backend(_none, _reference),
}


def automatic(problem: Problem) -> tuple[str, str]:
    """What `auto` is for a problem, and why it is not AUTO's entry (nothing: it is, or the problem has a cache)."""
    named = "eager" if problem.T < problem.S else AUTO.get(problem.device.type, "eager")
    why = BACKENDS[named].reasons(problem)
    if not why and named == "native" and not native.pays():
        why = ["not measured to be faster on this processor"]
    return ("eager", f"{named}: {'; '.join(why)}") if why else (named, "")


@constant
def _decided(impl: str, *facts: object) -> str:
    """_probed, as a constant to torch.compile, which would otherwise trace the probing."""
    return _probed(impl, *facts)


@lru_cache(maxsize=256)
def _probed(impl: str, *facts: object) -> str:
    """The name that serves."""
    problem = Problem(**dict(zip(FACTS, facts, strict=True)))  # type: ignore[arg-type]
    if impl == "auto":
        found, why = automatic(problem)
        if (found, why) not in _SAID:
            _SAID.add((found, why))
            log.info("attention: auto is %s for %s%s", found, problem, f" ({why})" if why else "")
        return found
    reasons = "; ".join(BACKENDS[impl].reasons(problem))
    want("attention", not reasons, f"a problem that impl={impl!r} serves", f"{problem}: {reasons}", "try impl='auto'")
    return impl


FACTS = tuple(field.name for field in fields(Problem))
_SAID: set[tuple[str, str]] = set()  # a choice is logged once per process, with what led to it


def choose(impl: str, call: Call) -> Backend:
    """ValueError if `impl` is unknown, or named and cannot serve; the message gives every reason."""
    names = ["auto", *BACKENDS]
    want("attention", impl in names, f"impl in {names}", repr(impl), "name one of these")
    if impl in ("eager", "reference"):
        return BACKENDS[impl]
    problem = call.problem()
    return BACKENDS[_decided(impl, *(getattr(problem, name) for name in FACTS))]


def statuses(problem: Problem) -> list[backends.Status]:
    """Every backend's state for a problem, for `hotplate backends`."""
    rows = []
    for name, backend in BACKENDS.items():
        why = backend.reasons(problem)
        found = torch.__version__ if backend.distribution == "torch" else backends.version(backend.distribution)
        rows.append(backends.Status("attention", name, not why, "; ".join(why) or f"serves {problem}", found))
    return rows
