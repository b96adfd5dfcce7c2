"""Machine code of the Triton kernels of norms, MLP, rotary, loss and AdamW, for GPUs that need not be there.

budgets/<room>.json holds what each shipped configuration compiles to, by architecture and version of Triton. A few of
them are compiled again here; all of them (two minutes) by

    python tests/kernels/test_transformer_compiled.py          compares, and exits with 1 where something differs
    python tests/kernels/test_transformer_compiled.py --write  records what the installed Triton makes

both of all rooms, or of those that are named.
"""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import triton
import triton.language as tl

from hotplate.kernels.compiled import ARCHS, Compiled, compile_kernel

BUDGETS = Path(__file__).resolve().parent / "budgets"
FP32 = (
    "parts",
    "statistics",
    "dweight",
    "dbias",
    "cosine",
    "sine",
    "dweights",
    "factors",
    "losses",
    "lse",
    "scale",
    "skipped",
)
INTEGERS = {"M": "i32", "D": "i32", "F": "i32", "S": "i32", "H": "i32", "G": "i32", "K": "i32", "C": "i32", "V": "i32"}
NUMBERS = dict.fromkeys(("eps", "cap", "smoothing", "z", "rest1", "beta2", "rest2"), "fp32")
OTHERS = {"targets": "*i64", "table": "*i64", "places": "*i32", "stride": "i32"}
EPS = 1e-5  # of norms: a constant of their kernels
ABI_STACK_BYTES = 8  # reserved now and then (Triton 3.6, sm_100) without one instruction that uses it
UNALIGNED = ("M", "C", "H", "G", "S")  # counts that need not be multiples of 16; widths are


@dataclass(frozen=True)
class Shipped:
    """A kernel as its room launches it: what is absent (None), and its constants."""

    room: str
    kernel: str
    name: str
    constants: tuple[tuple[str, Any], ...]
    warps: int
    dtype: str = "bf16"
    types: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.kernel}-{self.name}-{self.dtype}"


def constants(**values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(values.items())


def _norms() -> Iterator[Shipped]:
    from hotplate.kernels.norm import streaming

    for D in (768, 2048, 8192):
        R, BD, warps = streaming.blocks(D)
        rms = {"bias": None, "dbias": None}
        alone = {"residual": None, "total": None}
        for name, absent in (("rms-add", rms), ("layer-add", {}), ("rms", {**rms, **alone})):
            forward = constants(eps=EPS, R=R, BD=BD, **{k: v for k, v in absent.items() if k != "dbias"})
            yield Shipped("norm", "forward_kernel", f"{name}-{D}", forward, warps)
            alone_too = {"dtotal": None} if name == "rms" else {}
            backward = constants(R=R, BD=BD, **{k: v for k, v in absent.items() if k == "dbias"}, **alone_too)
            yield Shipped("norm", "backward_kernel", f"{name}-{D}", backward, warps)


def _mlps() -> Iterator[Shipped]:
    from hotplate.kernels.mlp import streaming

    for kind in ("swiglu", "gelu", "relu2"):
        same = constants(KIND=kind, BF=streaming.MOST_FEATURES, FAST=True)
        yield Shipped("mlp", "forward_kernel", kind, same, streaming.NUM_WARPS)
        yield Shipped("mlp", "backward_kernel", kind, (*same, ("parts", None)), streaming.NUM_WARPS)
        yield Shipped("mlp", "backward_kernel", f"{kind}-bias", same, streaming.NUM_WARPS)


def _rotaries() -> Iterator[Shipped]:
    from hotplate.kernels.rotary import streaming

    for K in (64, 128):
        BH, BP, warps = streaming.blocks(36, K)
        plain = {"q_weight": None, "k_weight": None}
        for name, absent in (("normed", {}), ("plain", plain)):
            same = constants(eps=EPS, BH=BH, BP=BP, **absent)
            yield Shipped("rotary", "forward_kernel", f"{name}-{K}", same, warps)
            gone = {} if name == "normed" else {"qkv": None, "dweights": None}
            yield Shipped("rotary", "backward_kernel", f"{name}-{K}", (*same, *gone.items()), warps)


def _losses() -> Iterator[Shipped]:
    from hotplate.kernels.cross_entropy import streaming

    types = (("logits", "*fp32"), ("scale", "fp32"))
    for name, known, capped, gone in (
        ("plain", False, False, {}),
        ("capped", False, True, {}),
        ("known", True, False, {}),
        ("no-gradient", False, False, {"factors": None}),
    ):
        flags = {"KNOWN": known, "CAPPED": capped, "FAST": True, **gone}
        for V in (500, 4096):
            R, BV, warps = streaming.tile(V)
            tile = constants(R=R, BV=BV, **flags)
            yield Shipped("cross_entropy", "tile_kernel", f"{name}-{V}", tile, warps, "bf16", types)
        row = constants(BV=streaming.BLOCK_LOGITS, **flags)
        yield Shipped("cross_entropy", "row_kernel", name, row, 8, "bf16", types)


def _adamws() -> Iterator[Shipped]:
    from hotplate.kernels.adamw import streaming

    kinds = {"alone": (None, tl.float32), "copy": (tl.bfloat16, tl.float32), "narrow": (tl.bfloat16, tl.bfloat16)}
    for name, (copy, gradient) in kinds.items():
        made = constants(BLOCK=streaming.BLOCK, COPY=copy, GRADIENT=gradient, ALIGNED=True)
        yield Shipped("adamw", "update_kernel", name, made, streaming.NUM_WARPS)


def shipped() -> list[Shipped]:
    return [*_norms(), *_mlps(), *_rotaries(), *_losses(), *_adamws()]


@cache
def compiled(what: Shipped, arch: int) -> Compiled:
    kernel = getattr(importlib.import_module(f"hotplate.kernels.{what.room}.streaming"), what.kernel)
    known = {**INTEGERS, **NUMBERS, **OTHERS, **dict.fromkeys(FP32, "*fp32"), **dict(what.types)}
    made = {name: value for name, value in what.constants if name in kernel.arg_names}
    signature = {name: known.get(name, f"*{what.dtype}") for name in kernel.arg_names if name not in made}
    aligned = [n for n, kind in signature.items() if n not in UNALIGNED and (kind[0] == "*" or kind == "i32")]
    if what.name.endswith("-500"):
        aligned.remove("V")
    return compile_kernel(kernel, signature, made, arch, num_warps=what.warps, divisible_by_16=aligned)


def record(code: Compiled) -> dict[str, object]:
    return {
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "shared_bytes": code.shared_bytes,
        "instructions": code.instructions,
        "mufu": code.count("MUFU"),
        "wide_loads": round(code.wide_share(), 2),
    }


def budgets(room: str) -> dict[str, Mapping[str, object]]:
    path = BUDGETS / f"{room}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def assert_clean(what: Shipped, code: Compiled) -> None:
    """Whatever the version: nothing spills, a program fits the registers, rows come in wide loads."""
    spills = code.local_bytes or code.count("LDL", "STL") or code.stack_bytes > ABI_STACK_BYTES
    assert not spills, f"{what} spills: {record(code)}"
    assert code.registers * 32 * what.warps <= 65536, f"{what}: {code.registers} registers"
    assert code.count("LDG.E.128"), f"{what}: {dict(code.opcodes)}"


SAMPLE = {
    "backward_kernel-rms-add-768-bf16",
    "backward_kernel-layer-add-8192-bf16",
    "backward_kernel-swiglu-bf16",
    "backward_kernel-normed-64-bf16",
    "row_kernel-plain-bf16",
    "tile_kernel-plain-500-bf16",
    "update_kernel-copy-bf16",
}


@pytest.mark.parametrize("what", [w for w in shipped() if str(w) in SAMPLE], ids=str)
def test_machine_code_is_what_the_budget_says(what):
    recorded = budgets(what.room)[f"{what}-sm90"]
    assert triton.__version__ in recorded, f"no budget for Triton {triton.__version__}; read this file's first lines"
    assert_clean(what, compiled(what, 90))
    assert record(compiled(what, 90)) == recorded[triton.__version__]


def test_every_shipped_kernel_has_a_budget_on_every_architecture_and_none_is_orphaned():
    assert {str(what) for what in shipped()} >= SAMPLE
    for room in {what.room for what in shipped()}:
        wanted = {f"{what}-sm{arch}" for what in shipped() if what.room == room for arch in ARCHS}
        assert set(budgets(room)) == wanted
        for name, versions in budgets(room).items():
            assert set(versions) >= {"3.6.0", "3.9.0"}, name
            assert all(made["stack_bytes"] <= ABI_STACK_BYTES for made in versions.values()), name


def main(write: bool, rooms: Sequence[str]) -> int:
    different = 0
    for room in rooms or sorted({what.room for what in shipped()}):
        body = budgets(room)
        for what in (w for w in shipped() if w.room == room):
            for arch in ARCHS:
                code, key = compiled(what, arch), f"{what}-sm{arch}"
                print(key, record(code), flush=True)
                assert_clean(what, code)
                different += body.get(key, {}).get(triton.__version__) != record(code)
                body[key] = {**body.get(key, {}), triton.__version__: record(code)}
        if write:
            (BUDGETS / f"{room}.json").write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{different} differ from the record")
    return 1 if different and not write else 0


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:], [word for word in sys.argv[1:] if word != "--write"]))
