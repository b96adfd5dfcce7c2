"""Quasi-LSTM recurrence, forward and backward: ours, a step-by-step loop, the published block-matrix form.

On a GPU also the scans of other packages, where they are installed: flash-linear-attention's HGRN and accelerated-scan.
They compute c_t = f_t c_{t-1} + u_t alone, so torch's activations before and after, in fp32, are within their time:
equal work.

Letters: B rows, T steps, D width, L steps of a block.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hotplate.bench.harness import Case
from hotplate.bench.providers import Op, Operands, both, forward, in_float64
from hotplate.kernels.qlstm import qlstm

BLOCK_STEPS = 16  # Languini's block length
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}  # the block-matrix form adds 1e-8 inside a logarithm


def block_matrix(gates: Tensor) -> Tensor:
    """h [B, T, D] by blocks of L steps: a block's states are F [c_before, u_1 .. u_L] with u = i z.

    F[k, j] is the product f_{j+1} .. f_{k+1}, taken as exp of a reverse cumulative sum of log(f + 1e-8).
    Source: Stanic et al. 2023, arXiv 2309.11197, the quasi-LSTM of Languini Kitchen.
    """
    wide = gates.float()
    i, f, o = (torch.sigmoid(wide[:, :, n]) for n in (0, 1, 3))
    u = i * torch.tanh(wide[:, :, 2])
    B, _, D = u.shape
    L = BLOCK_STEPS
    row, column = torch.arange(L, device=u.device)[:, None], torch.arange(L + 1, device=u.device)
    after, beyond = column > row, column > row + 1
    c, states = u.new_zeros(B, D), []
    for f_block, u_block in zip(f.split(L, 1), u.split(L, 1), strict=True):
        forgets = torch.nn.functional.pad(f_block.transpose(1, 2), (0, 1), value=1.0)
        tiled = forgets[:, :, None].expand(B, D, L, L + 1).masked_fill(after, 1.0)
        sums = torch.log(tiled + 1e-8).flip(-1).cumsum(-1).flip(-1)
        matrix = (torch.exp(sums) - 1e-8).masked_fill(beyond, 0.0)
        vector = torch.cat([c[:, None], u_block], 1)
        block = torch.einsum("bdkj,bjd->bkd", matrix, vector)
        states.append(block)
        c = block[:, -1]
    return (o * torch.tanh(torch.cat(states, 1))).to(gates.dtype)


def step_loop(gates: Tensor) -> Tensor:
    """h [B, T, D] as one would write the cell: every activation inside the loop, gradients by autograd."""
    c, h = gates.new_zeros(gates.shape[0], gates.shape[3], dtype=torch.float32), []
    for pre in gates.unbind(1):  # indexing gates[:, t] instead would make the backward quadratic in T
        i, f, z, o = pre.float().unbind(1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h.append((torch.sigmoid(o) * torch.tanh(c)).to(gates.dtype))
    return torch.stack(h, 1)


def _around_a_scan(scan: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """h by torch's activations around scan(f before its sigmoid, i z) -> c, all [B, T, D]."""

    def op(gates: Tensor) -> Tensor:
        i, f, z, o = gates.float().unbind(2)
        return (torch.sigmoid(o) * torch.tanh(scan(f, torch.sigmoid(i) * torch.tanh(z)))).to(gates.dtype)

    return op


def _time_last(scan: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """For a scan of contiguous [B, D, T]: the transposes are its price."""

    def scanned(f: Tensor, u: Tensor) -> Tensor:
        return scan(torch.sigmoid(f).mT.contiguous(), u.mT.contiguous()).mT

    return _around_a_scan(scanned)


def _hgrn(scan: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]) -> Callable[[Tensor, Tensor], Tensor]:
    """HGRN takes what is added first and the logarithm of f second, and also returns the last state."""
    return lambda f, u: scan(u, logsigmoid(f))[0]


def _imported(name: str) -> ModuleType | None:
    """None where the package is not installed, or cannot build or load its extension."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        return None


def other_packages(device: str) -> dict[str, Op]:
    """Providers of what is installed; their kernels run on CUDA only."""
    if device != "cuda":
        return {}
    hgrn, accelerated, ops = _imported("fla.ops.hgrn"), _imported("accelerated_scan.warp"), {}
    for name in ("chunk_hgrn", "fused_recurrent_hgrn") if hgrn else ():
        ops[f"fla {name}"] = _around_a_scan(_hgrn(getattr(hgrn, name)))
    if accelerated:
        ops["accelerated-scan, warp"] = _time_last(accelerated.scan)
    return ops


def cases(device: str, quick: bool) -> list[Case]:
    """Forward, and forward with backward; fp32 on a CPU, bf16 on a GPU."""
    on_cpu = device == "cpu"
    shapes = [(2, 64, 64)] if quick else [(8, 512, 512)] if on_cpu else [(64, 512, 768), (32, 1024, 1024)]
    dtype = torch.float32 if on_cpu else torch.bfloat16
    return [_case(way, B, T, D, device, dtype) for B, T, D in shapes for way in ("forward", "forward+backward")]


def _case(way: str, B: int, T: int, D: int, device: str, dtype: torch.dtype) -> Case:
    wrap = forward if way == "forward" else both

    def prepare() -> Operands:
        gates = torch.randn(B, T, 4, D, device=device).to(dtype).requires_grad_()
        return Operands([gates], torch.randn(B, T, D, device=device).to(dtype))

    def ours(impl: str) -> Op:
        return lambda gates: qlstm(gates, impl=impl)[0]

    ops = {
        **{impl: ours(impl) for impl in ("native" if device == "cpu" else "triton", "eager", "reference")},
        "step loop": step_loop,
        "block matrix": block_matrix,
        **other_packages(device),
    }
    values = 5 if way == "forward" else 14  # I/O values per element: 4 + 1, and 4 + 1 read, 4 written
    return Case(
        bench="qlstm",
        name=f"{way} B{B} T{T} D{D}",
        device=device,
        dtype=dtype,
        prepare=prepare,
        truth=in_float64(ops["reference"], backward=way != "forward"),
        providers={name: wrap(op) for name, op in ops.items()},
        tolerance=TOLERANCE[dtype],
        tokens=B * T,
        moved_bytes=values * B * T * D * dtype.itemsize,
    )
