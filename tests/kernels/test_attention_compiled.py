"""Machine code of attention's Triton kernels, as configurations.json cuts them, without a GPU.

budgets/attention.json holds what each shipped configuration compiled to, by version of Triton, attention_helpers.json
the same of the list of tiles: the rules below hold for every record, and a quick sample is compiled again and
compared. To compile and record all with the installed Triton:

    python tests/kernels/test_attention_compiled.py
"""

import functools
from dataclasses import dataclass

import pytest
from recorded import assert_as_recorded, rebaseline, records

from hotplate.kernels.attention import kernel_backward, kernel_forward, kernel_tiles, launches
from hotplate.kernels.compiled import Compiled, compile_kernel
from hotplate.kernels.launch import power_of_2

ROOM, HELPERS = "attention", "attention_helpers"
KERNELS = {
    "forward": kernel_forward.forward_kernel,
    "keys": kernel_backward.keys_kernel,
    "queries": kernel_backward.queries_kernel,
}
WALKED = {"forward": ("k", "v"), "keys": ("q", "dout"), "queries": ("k", "v")}
OWNED = {"forward": ("q",), "keys": ("k", "v"), "queries": ("q", "dout")}
SCALARS = {
    "scale": "fp32",
    "unit": "fp32",
    "bend": "fp32",
    "squeeze": "fp32",
    "lse": "*fp32",
    "pairs": "*fp32",
    "parts": "*fp32",
}
IN_DTYPE = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
KIND = {"bf16": "16 bit", "fp32": "float32"}
SHARED_BYTES = {80: 101376, 90: 232448, 100: 232448}  # a program's most; 80 stands also for 8.6, 8.9 and 12.0
REGISTERS_OF_SM = 65536


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One pass as launches.py launches it."""

    name: str
    arch: int
    K: int
    dtype: str = "bf16"
    described: bool = True
    window: bool = False
    softcap: bool = False
    summing: bool = False  # the pass `queries` in fp32, for delta
    biased: bool = False  # with sums over rows, for a bias
    group: int = 1

    def __str__(self) -> str:
        features = [name for name in ("window", "softcap", "summing", "biased") if getattr(self, name)]
        features += [] if self.described else ["pointers"]
        return "-".join([self.name, f"K{self.K}", self.dtype, f"sm{self.arch}", f"group{self.group}", *features])

    @property
    def cut(self) -> launches.Configuration:
        width = max(32, power_of_2(self.K))
        return launches.shipped()[self.arch if self.described else 80, self.name, KIND[self.dtype], width]


def shipped() -> list[Shipped]:
    widths, made = (32, 64, 128, 256), []
    for name in KERNELS:
        made += [Shipped(name=name, arch=arch, K=K) for arch in (90, 100) for K in widths]
        made += [Shipped(name=name, arch=80, K=K, described=False) for K in widths]
        made += [Shipped(name=name, arch=80, K=K, dtype="fp32", described=False) for K in widths[:3]]
        made += [Shipped(name=name, arch=90, K=K, described=False) for K in (64, 96)]
        made += [Shipped(name=name, arch=90, K=K, dtype="fp32", described=False) for K in (64, 128)]
        made += [
            Shipped(name=name, arch=90, K=64, window=window, softcap=not window, group=4) for window in (True, False)
        ]
    made += [Shipped(name="keys", arch=80, K=K, described=False, group=4) for K in widths]
    made += [
        Shipped(name="keys", arch=arch, K=K, group=4, softcap=softcap)
        for arch in (90, 100)
        for K in widths
        for softcap in (False, True)
        if (arch, K, softcap) != (90, 64, True)  # above
    ]
    made += [Shipped(name="keys", arch=arch, K=K, group=4, window=True) for arch in (90, 100) for K in (128, 256)]
    made += [
        Shipped(name="queries", arch=arch, K=128, dtype="fp32", described=False, summing=True) for arch in (80, 90)
    ]
    made += [
        Shipped(name=name, arch=arch, K=K, described=arch > 80, biased=True)
        for name in ("keys", "queries")
        for arch in (80, 90, 100)
        for K in widths
    ]
    return made


SAMPLE = [
    Shipped(name="forward", arch=90, K=64),
    Shipped(name="keys", arch=90, K=64),
    Shipped(name="queries", arch=90, K=64),
    Shipped(name="forward", arch=90, K=128),
    Shipped(name="forward", arch=100, K=64),
    Shipped(name="keys", arch=80, K=64, described=False),
]


@functools.cache
def compiled(this: Shipped) -> Compiled:
    kernel, cut = KERNELS[this.name], this.cut
    own, step = ("N", "M") if this.name == "keys" else ("M", "N")
    constants = {
        own: cut.own,
        step: cut.step,
        "GROUP": this.group,
        "K": this.K,
        "KP": power_of_2(this.K),
        "DESCRIBED": this.described,
        "WINDOW": this.window,
        "SOFTCAP": this.softcap,
        "PRECISION": "ieee" if this.dtype == "fp32" else "tf32",
        "FAST": True,
        "dlse": None,
        **({"out": None} if this.name == "queries" and this.dtype == "fp32" else {}),
        "SUMMING": this.summing,
        **({} if this.biased else {"parts": None}),
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}

    def type_of(name: str) -> str:
        if this.described and name in WALKED[this.name]:
            return f"tensordesc<{this.dtype}[1,1,{cut.step},{this.K}]>"
        if this.described and name in OWNED[this.name]:
            return f"tensordesc<{this.dtype}[1,1,{cut.own},{this.K}]>"
        if name in ("edges_q", "edges_k", "tiles"):
            return "*i32"
        return SCALARS.get(name, f"*{this.dtype}" if name in IN_DTYPE else "i32")

    signature = {name: type_of(name) for name in kernel.arg_names if name not in constants}
    aligned = [n for n, kind in signature.items() if kind[0] == "*" or n.endswith(("_row", "_head"))]
    return compile_kernel(
        kernel,
        signature,
        constants,
        this.arch,
        num_warps=cut.warps,
        num_stages=cut.stages,
        divisible_by_16=[*aligned, "positions"],
        **launches.limits(this.name, this.K, this.described, this.softcap),
    )


def record(this: Shipped) -> dict[str, int]:
    code = compiled(this)
    loads = {op: n for op, n in code.opcodes.items() if op.split(".")[0] in ("LDG", "LDGSTS")}
    wide = {op: n for op, n in loads.items() if "128" in op.split(".")}
    copies = sum(n for op, n in loads.items() if op.startswith("LDGSTS"))
    return {
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "loop_spills": code.count("LDL", "STL", innermost=True),
        "shared_bytes": code.shared_bytes,
        "warps": this.cut.warps,
        "wgmma": code.count("HGMMA"),
        "tcgen05": code.count("UTCHMMA"),
        "mma": code.count("HMMA"),
        "descriptor_loads": code.count("UTMALDG"),
        "wide_loads": sum(wide.values()),
        "narrow_copies": copies - sum(n for op, n in wide.items() if op.startswith("LDGSTS")),
        "loop_mufu": code.count("MUFU", innermost=True),
        "instructions": code.instructions,
    }


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The kernel that lists tiles."""

    arch: int

    def __str__(self) -> str:
        return f"list-sm{self.arch}"


def helpers() -> list[Lists]:
    return [Lists(arch=arch) for arch in (80, 90, 100)]


def record_helper(this: Lists) -> dict[str, int]:
    kernel, constants = kernel_tiles.list_kernel, {"D": kernel_tiles.LISTED, "N": kernel_tiles.DOCUMENTS}
    pointers = {"edges": "*i32", "tiles": "*i32"}
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names if name not in constants}
    code = compile_kernel(
        kernel, signature, constants, this.arch, num_warps=kernel_tiles.WARPS, divisible_by_16=list(pointers)
    )
    return {
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "shared_bytes": code.shared_bytes,
        "instructions": code.instructions,
    }


def test_the_list_is_what_the_budget_says():
    assert_as_recorded(HELPERS, Lists(arch=90), record_helper)


def test_the_list_spills_nothing():
    bodies = records(HELPERS)
    assert sorted(bodies) == sorted(map(str, helpers()))
    for versions in bodies.values():
        assert sorted(versions) == ["3.6.0", "3.9.0"]
        assert all(found["stack_bytes"] == 0 and found["registers"] <= 128 for found in versions.values())


@pytest.mark.parametrize("this", SAMPLE, ids=str)
def test_machine_code_is_what_the_budget_says(this):
    assert_as_recorded(ROOM, this, record)


@pytest.mark.parametrize("this", shipped(), ids=str)
def test_recorded_machine_code_is_fast_in_kind(this):
    """For every version: no spill, memory that fits, the matrix unit of the architecture, whole loads, and in 64
    features two programs to a multiprocessor."""
    for found in records(ROOM)[str(this)].values():
        assert found["stack_bytes"] == 0 and found["loop_spills"] == 0
        assert found["shared_bytes"] <= SHARED_BYTES[this.arch] and found["registers"] <= 255
        assert (found["wgmma"] > 0) == (this.arch == 90 and this.dtype == "bf16")
        assert (found["tcgen05"] > 0) == (this.arch == 100)
        assert (found["mma"] > 0) == (this.arch == 80 and this.dtype == "bf16")
        assert (found["descriptor_loads"] > 0) == this.described
        pointers = not this.described or this.name == "queries"  # which read out, for delta
        assert (found["wide_loads"] > 0) == pointers
        assert found["narrow_copies"] == 0 or this.name == "keys"  # of lse and delta
        if this.K == 64 and this.described and this.group == 1:
            threads = 32 * found["warps"]
            assert 2 * threads * found["registers"] <= REGISTERS_OF_SM
            assert 2 * found["shared_bytes"] <= SHARED_BYTES[this.arch]


def test_every_configuration_has_a_record():
    bodies = records(ROOM)
    assert sorted(bodies) == sorted(map(str, shipped()))
    assert all(sorted(records) == ["3.6.0", "3.9.0"] for records in bodies.values())
    cuts = {(this.arch if this.described else 80, this.name, KIND[this.dtype]) for this in shipped()}
    assert cuts == {key[:3] for key in launches.shipped()}


if __name__ == "__main__":
    rebaseline(HELPERS, helpers(), record_helper)
    rebaseline(ROOM, shipped(), record)
