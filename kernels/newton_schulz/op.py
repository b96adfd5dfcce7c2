"""Orthogonalisation of a matrix by Newton-Schulz: contract, checks and the choice of implementation.

Letters: M rows, N columns.
"""

import torch
from torch import Tensor

from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import choose_impl, operator
from hotplate.kernels.newton_schulz import eager, reference

IMPLS = ("auto", "eager", "reference", "triton")


@torch.no_grad()
def newton_schulz(g: Tensor, steps: int = 5, impl: str = "auto") -> Tensor:
    """About U V^T for g = U S V^T: `steps` of X <- a X + (b A + c A^2) X, A = X X^T, from X = g / |g|_F.

    g [..., M, N] bf16|fp16|fp32|fp64; every leading index is a matrix of its own; worked on transposed where
    M > N. Returns the same shape and dtype, without gradient.
    Products in fp32 on CPU (fp64 for fp64), bf16 on GPU.
    impl: auto, eager (torch's products; on a CPU the products of `kernels/product`, the halves of symmetric ones),
    triton (symmetric products by halves; bf16, fp16, fp32) or reference. auto is eager until triton has been measured
    on a GPU. A name never falls back.
    Flops at the least: steps (S (S + 1) (L + S) + 2 S^2 L), S and L the shorter and longer side.
    ValueError on fewer than two axes, no steps, another dtype, device or impl. Source: Jordan et al. 2024, Muon.
    """
    impl = "eager" if impl == "auto" else choose_impl("newton_schulz", impl, g, IMPLS)
    want("newton_schulz", g.ndim >= 2, "g [..., M, N]", str(list(g.shape)), "give vectors to another optimiser")
    want("newton_schulz", steps >= 1, "steps >= 1", str(steps), "Muon takes 5")
    want_float("newton_schulz", "g", g)
    if impl == "triton":
        return operator("hotplate.kernels.newton_schulz.launches", "newton_schulz")(g, steps)
    return (eager if impl == "eager" else reference).newton_schulz(g, steps)
