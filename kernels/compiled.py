"""Compiles a Triton kernel for a GPU that need not be there, and counts what came out.

Registers, spills and shared memory come from the cubin, instructions from its disassembly, both through the
cuobjdump that ships with Triton. Tests hold these counts to budgets; nothing here runs a kernel.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHS = (80, 90, 100)  # compute capability times ten
WARP_LANES = 32

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """One kernel as machine code. Opcodes are counted with their modifiers: LDG.E.128, MUFU.EX2."""

    name: str
    arch: int
    registers: int  # per lane
    stack_bytes: int  # per lane; more than the ABI's minimum means spills
    local_bytes: int  # per lane
    shared_bytes: int  # per program
    instructions: int
    opcodes: Mapping[str, int]
    innermost: Mapping[str, int]  # opcodes of the longest loop that holds no other loop; empty without a loop

    def count(self, *prefixes: str, innermost: bool = False) -> int:
        """Instructions whose opcode is one of `prefixes` or starts with it and a dot: count("BAR", "MUFU")."""
        table = self.innermost if innermost else self.opcodes
        return sum(n for op, n in table.items() if any(op == p or op.startswith(f"{p}.") for p in prefixes))

    def wide_share(self) -> float:
        """Share of global loads that bring 16 bytes per lane (1.0 where nothing is loaded)."""
        loads = {op: n for op, n in self.opcodes.items() if op.split(".")[0] in ("LDG", "LDGSTS")}
        total = sum(loads.values())
        return sum(n for op, n in loads.items() if "128" in op.split(".")) / total if total else 1.0


def _loops(code: Sequence[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """(first, last) address of every backward branch that is not the self-branch after EXIT."""
    found = []
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.split(".")[0] == "BRA" else None
        if target and int(target[1], 16) < address:
            found.append((int(target[1], 16), address))
    return found


def _innermost(code: Sequence[tuple[int, str, str]]) -> Counter[str]:
    loops = _loops(code)
    leaves = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    if not leaves:
        return Counter()
    first, last = max(leaves, key=lambda loop: loop[1] - loop[0])
    return Counter(opcode for address, opcode, _ in code if first <= address <= last)


def _cuobjdump(*arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout + done.stderr


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    arch: int,
    *,
    num_warps: int,
    num_stages: int = 1,
    divisible_by_16: Sequence[str] = (),
    **options: Any,
) -> Compiled:
    """`kernel` (a @triton.jit function) as it would run on compute capability `arch` / 10, without a GPU.

    signature: every argument that is no constexpr -> its Triton type ("*fp32", "*bf16", "i32", "fp32").
    constexprs: the other arguments -> their values. divisible_by_16: pointers and integers that the launcher
    would find to be multiples of 16; without the mark no load is wide. options go to the compiler; products fuse into
    sums unless they say otherwise, as in launch.launch.
    ValueError if an argument has neither a type nor a value, or the kernel was made for the interpreter.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    names = getattr(kernel, "arg_names", None)
    if names is None or type(kernel).__name__ == "InterpretedFunction":
        raise ValueError(
            f"compile_kernel: want a @triton.jit function, got {type(kernel).__name__}; unset TRITON_INTERPRET"
        )
    missing = [name for name in names if name not in signature and name not in constexprs]
    if missing or arch not in ARCHS:
        raise ValueError(
            f"compile_kernel: want an arch of {ARCHS} and a type or value per argument, got {arch}, lacking {missing}; "
            "name the types in `signature`, the values in `constexprs`"
        )
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constexprs else signature[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible_by_16},
    )
    target = GPUTarget("cuda", arch, WARP_LANES)
    settings = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True, **options}
    built = triton_compile(source, target=target, options=settings)
    handle, path = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(built.asm["cubin"])
        usage, listing = _cuobjdump("-res-usage", path), _cuobjdump("-sass", path)
    finally:
        os.unlink(path)
    found = _USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"compile_kernel: no resource line in cuobjdump's answer: {usage!r}")
    registers, stack, _, local = map(int, found.groups())
    code = [(int(address, 16), opcode, rest) for address, opcode, rest in _INSTRUCTION.findall(listing)]
    return Compiled(
        name=built.metadata.name,
        arch=arch,
        registers=registers,
        stack_bytes=stack,
        local_bytes=local,
        shared_bytes=built.metadata.shared,
        instructions=len(code),
        opcodes=Counter(opcode for _, opcode, _ in code),
        innermost=_innermost(code),
    )
