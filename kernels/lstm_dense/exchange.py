"""How the programs of a persistent kernel tell each other that a step is done. Importing this needs Triton.

A group of G programs counts finished steps in FLAGS flags: a program stores its part of a step, then adds one to its
flag with release; who needs the step polls all flags with acquire, until each has its count. Counts only grow, so the
number of a step is its epoch and nothing is set back between steps. All programs have to run at once: the grid is
launched cooperatively, and one that does not fit is an error, not a hang.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SLICE = 16  # columns of a program: four gates of it are the 64 rows that a warp group's matrix unit takes
ROWS = 16  # of a group
FLAGS = 32  # per group: one per lane, so that a warp polls them in one load
WARPS = 8


@triton.jit
def await_step(group, step, G: tl.constexpr, FLAGS: tl.constexpr):
    """Until all G programs have announced `step` steps; one program alone, as in the interpreter, need not wait."""
    if G > 1:
        flag = tl.arange(0, FLAGS)
        polled = (group + flag).to(tl.int64)
        expected = step * ((G - flag + FLAGS - 1) // FLAGS)  # programs that add to each flag
        missing = -1
        while missing < 0:
            seen = tl.inline_asm_elementwise(
                "ld.acquire.gpu.global.s32 $0, [$1];", "=r,l", [polled], dtype=tl.int32, is_pure=False, pack=1
            )
            missing = tl.min(seen - expected, axis=0)
        tl.debug_barrier()  # each lane acquired one flag; the barrier hands all of them to every lane


@triton.jit
def announce(group, part, G: tl.constexpr, FLAGS: tl.constexpr):
    """One more step of program `part` is stored."""
    if G > 1:
        tl.debug_barrier()
        tl.atomic_add(group + part % FLAGS, 1, sem="release", scope="gpu")


def new_flags(groups: int, device: torch.device) -> Tensor:
    return torch.zeros(groups, FLAGS, dtype=torch.int32, device=device)
