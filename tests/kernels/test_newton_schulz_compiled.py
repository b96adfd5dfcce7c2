"""Machine code of Newton-Schulz's Triton kernels, as configurations.json cuts them, without a GPU.

budgets/newton_schulz.json holds what each shipped configuration compiled to, by version of Triton: the rules below
hold for every record, and a quick sample is compiled again and compared. To record all of what the installed Triton
makes:

    python tests/kernels/test_newton_schulz_compiled.py
"""

import functools
from dataclasses import dataclass

import pytest
import torch
from recorded import assert_as_recorded, rebaseline, records

from hotplate.kernels.compiled import ARCHS, Compiled, compile_kernel
from hotplate.kernels.newton_schulz import launches, symmetric
from hotplate.kernels.newton_schulz.launches import Configuration
from hotplate.kernels.newton_schulz.reference import COEFFICIENTS

ROOM = "newton_schulz"
SHARED_BYTES = {80: 101376, 90: 232448, 100: 232448}  # a program's most; 80 stands also for 8.6, 8.9 and 12.0
REGISTERS_OF_SM = 65536
A, B, C = COEFFICIENTS
FLAGS = {  # a launch: what its kernel is told
    "gram": {"ADD": False, "b": 0.0, "c": 1.0},
    "polynomial": {"ADD": True, "b": B / C, "c": C},
    "update": {"LAST": False, "TALL": False, "a": A},
    "last": {"LAST": True, "TALL": False, "a": A},
    "last-tall": {"LAST": True, "TALL": True, "a": A},
    "scale": {"TALL": False},
    "scale-tall": {"TALL": True},
}
KERNELS = {
    "gram": symmetric.symmetric_kernel,
    "polynomial": symmetric.symmetric_kernel,
    "scale": symmetric.scale_kernel,
}
OUTSIDE = ("g", "norms")  # fp32, as the optimiser's momentum is; so is the last result


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One launch of launches.py: sides that are multiples of 16, as those of a model are, or RAGGED ones."""

    launch: str
    arch: int
    tile: int
    ragged: bool = False

    def __str__(self) -> str:
        return f"{self.launch}-tile{self.tile}-sm{self.arch}{'-ragged' if self.ragged else ''}"

    @property
    def scales(self) -> bool:
        return self.launch.startswith("scale")

    @property
    def cut(self) -> Configuration:
        return next(cut for cut in launches.shipped()[self.arch] if cut.tile == self.tile)

    @property
    def warps(self) -> int:
        return launches.SCALE_WARPS if self.scales else self.cut.warps


def shipped() -> list[Shipped]:
    made = []
    for arch in ARCHS:
        products = [name for name in FLAGS if not name.startswith("scale")]
        made += [
            Shipped(launch=name, arch=arch, tile=cut.tile) for cut in launches.shipped()[arch] for name in products
        ]
        made += [Shipped(launch=name, arch=arch, tile=tile) for name in ("scale", "scale-tall") for tile in (64, 32)]
        made += [Shipped(launch=name, arch=arch, tile=64, ragged=True) for name in ("last", "scale", "scale-tall")]
    return made


SAMPLE = [Shipped(launch=name, arch=90, tile=128) for name in ("gram", "polynomial", "update", "last-tall")]
SAMPLE += [Shipped(launch="scale-tall", arch=90, tile=64), Shipped(launch="polynomial", arch=100, tile=128)]


@functools.cache
def compiled(this: Shipped) -> Compiled:
    kernel = KERNELS.get(this.launch.split("-")[0], symmetric.update_kernel)
    constants = {**FLAGS[this.launch], "B": this.tile, "BK": this.cut.step}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}

    def type_of(name: str) -> str:
        if name.isupper():
            return "i32"
        return "*fp32" if name in OUTSIDE or (name == "out" and constants.get("LAST")) else "*bf16"

    signature = {name: type_of(name) for name in kernel.arg_names if name not in constants}
    known = [n for n in signature if not (this.ragged and n in "MN")]
    stages = 1 if this.scales else this.cut.stages
    return compile_kernel(
        kernel, signature, constants, this.arch, num_warps=this.warps, num_stages=stages, divisible_by_16=known
    )


def record(this: Shipped) -> dict[str, int]:
    code = compiled(this)
    memory = {op: n for op, n in code.opcodes.items() if op.split(".")[0] in ("LDG", "LDGSTS", "STG")}
    return {
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "spills": code.count("LDL", "STL"),
        "shared_bytes": code.shared_bytes,
        "warps": this.warps,
        "wgmma": code.count("HGMMA"),
        "tcgen05": code.count("UTCHMMA"),
        "mma": code.count("HMMA"),
        "wide": sum(n for op, n in memory.items() if "128" in op.split(".")),
        "narrow": sum(n for op, n in memory.items() if "128" not in op.split(".")),
        "loop_instructions": sum(code.innermost.values()),
        "instructions": code.instructions,
    }


@pytest.mark.parametrize("this", SAMPLE, ids=str)
def test_machine_code_is_what_the_budget_says(this):
    assert_as_recorded(ROOM, this, record)


@pytest.mark.parametrize("this", shipped(), ids=str)
def test_recorded_machine_code_is_fast_in_kind(this):
    """For every version: no spill, memory that fits, the matrix unit of the architecture, whole loads and stores, and
    on compute capability 9 and 10 two programs of the largest tile to a multiprocessor, but in the last step."""
    for found in records(ROOM)[str(this)].values():
        assert found["stack_bytes"] == 0 and found["spills"] == 0
        assert found["shared_bytes"] <= SHARED_BYTES[this.arch] and found["registers"] <= 255
        assert (found["wgmma"] > 0) == (this.arch == 90 and this.tile >= 64 and not this.scales)
        assert (found["tcgen05"] > 0) == (this.arch == 100 and this.tile >= 64 and not this.scales)
        assert found["mma"] > 0 or found["wgmma"] > 0 or found["tcgen05"] > 0 or this.scales
        assert found["wide"] > 0
        assert found["narrow"] <= this.scales or this.ragged  # one number, the norm
        if this.tile == 128 and this.arch > 80:
            assert 2 * 32 * found["warps"] * found["registers"] <= REGISTERS_OF_SM or this.launch.startswith("last")
            assert 2 * found["shared_bytes"] <= SHARED_BYTES[this.arch]


def test_every_configuration_has_a_record():
    bodies = records(ROOM)
    assert sorted(bodies) == sorted(map(str, shipped()))
    assert all(sorted(records) == ["3.6.0", "3.9.0"] for records in bodies.values())
    assert sorted(launches.shipped()) == list(ARCHS)


@pytest.mark.parametrize(
    ("matrices", "S", "tile"),
    [
        (48, 768, 128),
        (24, 768, 128),
        (1, 768, 64),
        (16, 1024, 128),
        (1, 1024, 64),
        (100, 129, 64),
        (500, 129, 64),
        (1, 1, 32),
    ],
)
def test_large_tiles_are_for_many_of_them_and_little_padding(monkeypatch, matrices, S, tile):
    monkeypatch.setattr(launches, "device_facts", lambda device: (90, 132))
    assert launches.configuration(matrices, S, torch.device("cuda")).tile == tile


if __name__ == "__main__":
    rebaseline(ROOM, shipped(), record)
