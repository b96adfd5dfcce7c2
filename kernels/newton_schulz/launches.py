"""Launches of the Triton kernels: tiles from configurations.json, one pair of buffers for all steps.

Letters: M rows and N columns of a matrix, S and L its shorter and longer side, padded to tiles. Needs Triton.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
from torch import Tensor

from hotplate.kernels.launch import wrap_triton
from hotplate.kernels.newton_schulz.eager import COEFFICIENTS, norms, work_dtype
from hotplate.kernels.newton_schulz.symmetric import scale_kernel, symmetric_kernel, update_kernel

SCALE_TILE, SCALE_WARPS = 64, 4
MOST_PADDING = 1.25  # of the shorter side, over what the smallest tile pads it to


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How products are cut. tile: rows and columns of a program's result; step: of its sum at a time."""

    tile: int
    step: int
    warps: int
    stages: int


@cache
def shipped() -> dict[int, list[Configuration]]:
    """By architecture, the largest tile first, as configurations.json lists them."""
    body = json.loads(Path(__file__).with_name("configurations.json").read_text(encoding="utf-8"))
    found: dict[int, list[Configuration]] = {}
    for row in body["configurations"]:
        cut = Configuration(**{name: row[name] for name in ("tile", "step", "warps", "stages")})
        found.setdefault(row["arch"], []).append(cut)
    return {arch: sorted(cuts, key=lambda cut: -cut.tile) for arch, cuts in found.items()}


@cache
def device_facts(device: torch.device) -> tuple[int, int]:
    """The architecture whose configurations a device runs (80 for all but compute capability 9 and 10), and how many
    processors it has."""
    if device.type != "cuda":  # the interpreter
        return 80, 1
    properties = torch.cuda.get_device_properties(device)
    return {9: 90, 10: 100}.get(properties.major, 80), properties.multi_processor_count


def padded(side: int, tile: int) -> int:
    return triton.cdiv(side, tile) * tile


def configuration(matrices: int, S: int, device: torch.device) -> Configuration:
    """The largest tile that pads S little and gives every other processor a program of a symmetric product; where there
    is none, the smallest: larger tiles read less, but a matrix alone has few of them."""
    arch, processors = device_facts(device)
    cuts = shipped()[arch]
    least = padded(S, cuts[-1].tile)
    for cut in cuts:
        n = padded(S, cut.tile) // cut.tile
        if n * cut.tile <= MOST_PADDING * least and matrices * n * (n + 1) >= processors:
            return cut
    return cuts[-1]


def newton_schulz(g: Tensor, steps: int) -> Tensor:
    """See op.py; contiguous like g [..., M, N]."""
    M, N = g.shape[-2:]
    out = torch.empty_like(g, memory_format=torch.contiguous_format)
    if not g.numel():
        return out
    a, b, c = COEFFICIENTS
    matrices = g.numel() // (M * N)
    cut = configuration(matrices, min(M, N), g.device)
    S, L = padded(min(M, N), cut.tile), padded(max(M, N), cut.tile)
    x, y = (g.new_empty(matrices, S, L, dtype=work_dtype(g)) for _ in range(2))
    gram, polynomial = (x.new_empty(matrices, S, S) for _ in range(2))
    n, tall = S // cut.tile, M > N
    halves, tiles = (matrices * n * (n + 1) // 2,), (matrices * n * (L // cut.tile),)
    tile = min(SCALE_TILE, cut.tile)
    wrap_triton(scale_kernel)[(matrices * (S // tile) * (L // tile),)](
        g.contiguous(), norms(g).flatten(), x, M, N, S, L, TALL=tall, B=tile, num_warps=SCALE_WARPS
    )
    same = {"B": cut.tile, "BK": cut.step, "num_warps": cut.warps, "num_stages": cut.stages}
    for step in range(steps):
        wrap_triton(symmetric_kernel)[halves](x, gram, S, L, 0.0, 1.0, ADD=False, **same)
        wrap_triton(symmetric_kernel)[halves](gram, polynomial, S, S, b / c, c, ADD=True, **same)
        last = step == steps - 1
        wrap_triton(update_kernel)[tiles](
            polynomial, x, out if last else y, S, L, M, N, a, LAST=last, TALL=tall, **same
        )
        x, y = y, x
    return out


operator = torch.library.triton_op("hotplate::newton_schulz", newton_schulz, mutates_args=())
