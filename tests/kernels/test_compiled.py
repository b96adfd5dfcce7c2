"""Holds the machine code of the Triton kernels to recorded budgets, without a GPU.

budgets/<room>.json holds what every shipped configuration (shipped.py) compiled to for compute capability 8.0, 9.0 and
10.0, by version of Triton. Tests look at all of the record, and compile a fixed sample of it anew: both sides are
checked, so that a kernel that got better is recorded too. To record all of what the installed Triton makes, or the
configurations whose name contains a word (some minutes for all):

    python tests/kernels/test_compiled.py [WORD]
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from hotplate.kernels.compiled import Compiled, compile_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent))
from shipped import SHARED_BYTES, Shipped, compiled, everything  # noqa: E402

BUDGETS = Path(__file__).resolve().parent / "budgets"
VERSIONS = ("3.6.0", "3.9.0")
# Quick to compile, and one of each kind: streaming, resident, stepwise, persistent; all architectures.
SAMPLE = (
    "qlstm.streaming.forward_kernel one pass bf16 sm90",
    "qlstm.streaming.backward_kernel one pass bf16 sm80",
    "lstm_diagonal.streaming.forward_kernel one pass bf16 sm100",
    "lstm.resident.forward_kernel K64 bf16 sm90",
    "lstm.resident.backward_kernel K64 bf16 sm90",
    "lstm_dense.steps.backward_step  bf16 sm100",
    "lstm_dense.persistent.forward_kernel D1024 bf16 sm90",
    "lstm_dense.persistent_backward.backward_kernel D1024 bf16 sm90",
)
# Special-function instructions per element of streaming kernels, at the most. The 16-bit forward of qlstm takes o and
# tanh(c) in one instruction each; backward kernels replay what the compiler does not keep.
MUFU = {"qlstm forward_kernel bf16": 8, "qlstm forward_kernel first pass": 6}
# Barriers per step: h, or da, crosses the warps of a program once and comes in through shared memory.
LOOP_BARRIERS = {"forward_kernel": 6, "backward_kernel": 7}
FOUR_PRODUCTS_BARRIERS = 9  # of the backward in fp32
BY_NAME = {str(shipped): shipped for shipped in everything()}


def loads(code: Compiled) -> dict[str, int]:
    return {op: n for op, n in sorted(code.opcodes.items()) if op.split(".")[0] in ("LDG", "LDGSTS")}


def record(code: Compiled) -> dict[str, Any]:
    return {
        "registers": code.registers,
        "stack_bytes": code.stack_bytes,
        "local_bytes": code.local_bytes,
        "spills": code.count("LDL", "STL"),
        "shared_bytes": code.shared_bytes,
        "instructions": code.instructions,
        "barriers": code.count("BAR"),
        "matrix": code.count("HMMA", "HGMMA", "UTCHMMA"),
        "loop_instructions": sum(code.innermost.values()),
        "loop_barriers": code.count("BAR", innermost=True),
        "loop_mufu": code.count("MUFU", innermost=True),
        "loop_copies": code.count("LDGSTS", innermost=True),
        "loop_loads": code.count("LDG", innermost=True),
        "loop_reductions": code.count("REDUX", innermost=True),
        "loads": loads(code),
    }


@functools.cache
def budgets(room: str) -> dict[str, Any]:
    path = BUDGETS / f"{room}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def rebaseline(word: str) -> None:
    """Writes what the installed Triton makes next to what other versions made; drops what is shipped no more."""
    for name, shipped in BY_NAME.items():
        path, body = BUDGETS / f"{shipped.room}.json", budgets(shipped.room)
        if word in name:
            body.setdefault(name, {})[triton.__version__] = record(compiled(shipped))
            print(name, body[name][triton.__version__], flush=True)
        kept = {key: body[key] for key in sorted(body) if key in BY_NAME}
        lines = (f"{json.dumps(key)}: {_versions(by_version)}" for key, by_version in kept.items())
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _versions(by_version: dict[str, Any]) -> str:
    """A line per version, so that a change shows as one."""
    lines = (f' "{version}": {json.dumps(by_version[version])}' for version in sorted(by_version))
    return "{\n" + ",\n".join(lines) + "\n}"


@pytest.mark.parametrize("name", SAMPLE)
def test_machine_code_is_what_the_budget_says(name):
    recorded = budgets(BY_NAME[name].room)[name]
    assert triton.__version__ in recorded, (
        f"no budget for Triton {triton.__version__}, only for {sorted(recorded)}; "
        "read the new counts and record them: python tests/kernels/test_compiled.py"
    )
    assert record(compiled(BY_NAME[name])) == recorded[triton.__version__]


def test_everything_shipped_is_recorded():
    recorded = {name for room in {s.room for s in BY_NAME.values()} for name in budgets(room)}
    assert recorded == set(BY_NAME)
    for name, shipped in BY_NAME.items():
        assert set(VERSIONS) <= set(budgets(shipped.room)[name]), f"{name}: a version is missing"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shipped", BY_NAME.values(), ids=str)
def test_recorded_code_fits_and_does_not_spill(shipped, version):
    """What makes a kernel fast, whatever the version."""
    code = budgets(shipped.room)[str(shipped)][version]
    assert code["spills"] == 0 and code["local_bytes"] == 0 and code["stack_bytes"] == 0
    assert code["registers"] <= 255 and code["shared_bytes"] <= SHARED_BYTES[shipped.arch]
    if "streaming" in shipped.module:
        streams(shipped, code)
    elif shipped.module == "lstm.resident" and shipped.kernel in LOOP_BARRIERS:
        assert code["loop_copies"] > 0, "the loads of a step are not under way before it"
        four = shipped.dtype == "fp32" and shipped.kernel == "backward_kernel"
        assert code["loop_barriers"] <= (FOUR_PRODUCTS_BARRIERS if four else LOOP_BARRIERS[shipped.kernel])
        assert code["matrix"] > 0 or shipped.dtype == "fp32", "no matrix instructions"
    elif ("launch_cooperative_grid", True) in shipped.options:
        assert code["matrix"] > 0, "no matrix instructions"
        polls = code["loop_loads"], code["loop_reductions"], code["loop_barriers"]
        assert polls == (1, 1, 0), "programs that wait do more than load, reduce and branch"


def streams(shipped: Shipped, code: dict[str, Any]) -> None:
    """No barrier, whole lines, few special functions."""
    constants = dict(shipped.constants)
    per_lane, first_pass = constants["BD"] // 32 // shipped.num_warps, shipped.label == "first pass"
    assert code["barriers"] == 0 and code["shared_bytes"] == 0
    words = f"{shipped.room} {shipped.kernel}"
    most = MUFU.get(f"{words} {shipped.label}", MUFU.get(f"{words} {shipped.dtype}", 10))
    assert code["loop_mufu"] <= most * constants["K"] * per_lane
    rows = constants["N"] + (shipped.kernel == "backward_kernel") - (first_pass and shipped.kernel == "forward_kernel")
    size = {"bf16": 2, "fp32": 4}[shipped.dtype]
    row_load = {4: "LDG.E", 8: "LDG.E.64"}[per_lane * size]  # one per row and lane
    assert sum(n for op, n in code["loads"].items() if op.startswith(row_load)) >= rows * constants["K"]


def test_a_narrow_mark_costs_wide_loads():
    """The counter sees what it is there to see: without the mark of alignment no load is wide."""
    from hotplate.kernels.qlstm.streaming import forward_kernel

    pointers = {name: "*fp32" for name in ("gates", "h", "c_last")}
    absent = dict.fromkeys(("c0", "resets", "checkpoints", "product"))
    constants = {**absent, "N": 4, "K": 1, "BD": 128, "FAST": True, "HALF": False}
    signature = {**pointers, "T": "i32", "D": "i32", "offset": "fp32"}
    wide, narrow = (
        compile_kernel(forward_kernel, signature, constants, 90, num_warps=1, divisible_by_16=marked)
        for marked in ([*pointers, "D"], [])
    )
    assert wide.wide_share() == 1.0 and narrow.wide_share() == 0.0


def test_a_call_without_types_says_what_is_missing():
    from hotplate.kernels.qlstm.streaming import forward_kernel

    with pytest.raises(ValueError, match=r"^compile_kernel: .* lacking \['gates', .*name the types"):
        compile_kernel(forward_kernel, {}, {}, 90, num_warps=1)
    with pytest.raises(ValueError, match="want a @triton.jit function, got function; unset TRITON_INTERPRET"):
        compile_kernel(loads, {}, {}, 90, num_warps=1)


if __name__ == "__main__":
    rebaseline(sys.argv[1] if len(sys.argv) > 1 else "")
