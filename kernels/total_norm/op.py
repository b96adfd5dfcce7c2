"""The norm over all elements of many tensors: contract, checks and the choice of implementation.

Letter: N tensors.
"""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from hotplate.kernels.checks import want, want_float
from hotplate.kernels.launch import choose_impl

IMPLS = ("auto", "eager", "native", "reference")


@torch.no_grad()
def total_norm(tensors: Sequence[Tensor], *, impl: str = "auto") -> Tensor:
    """sqrt(sum over n and elements of x_n^2), as one scalar [] on the tensors' device: what clipping looks at.

    tensors: at least one, of one floating dtype and device, any shapes and strides; no gradient. fp64 on a CPU, where
    sums are fp64; on a GPU in the tensors' dtype, in fp32 for 16 bits. NaN and infinity in any element make it NaN or
    infinite. Without elements it is 0.
    impl: auto, eager (torch's), native (C on a CPU, fp32 or bf16; results do not depend on the number of threads) or
    reference (fp64). auto is native for those on a CPU where a C compiler is found, else eager; a name never falls
    back.
    Memory traffic: each element read once. ValueError on other dtypes, devices or impl.
    """
    want("total_norm", len(tensors) > 0, "tensors", "none", "there is nothing to measure")
    like = tensors[0]
    served = like.dtype in (torch.float32, torch.bfloat16)
    impl = "eager" if impl == "auto" and not served else choose_impl("total_norm", impl, like, IMPLS)
    want_float("total_norm", "tensor", like)
    for x in tensors:
        alike, facts = (x.dtype, x.device) == (like.dtype, like.device), f"{x.dtype} on {x.device}"
        want("total_norm", alike, f"{like.dtype} on {like.device} throughout", facts, "cast it")
    held = [x for x in tensors if x.numel()] or [like.new_zeros(1)]
    form = importlib.import_module(f"hotplate.kernels.total_norm.{impl}")
    return form.total_norm(held)
