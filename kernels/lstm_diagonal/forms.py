"""The forms of this room as kernels/recurrence/autograd.py takes them: gates and states with one head.

Letters: B rows, T steps, D width. A form is a module with `saved_shape`, `forward` and `backward`, on tensors without
the axis of heads; Triton's is imported when it is asked for.
"""

import importlib
from functools import cache

import torch
from torch import Tensor

from hotplate.kernels.recurrence.autograd import Form, Shapes, differentiable

FILES = {"eager": "eager", "native": "native", "triton": "streaming"}


def _headless(*states: Tensor | None) -> list[Tensor | None]:
    return [None if state is None else state[:, 0].contiguous() for state in states]


@cache
def _form(impl: str) -> Form:
    """Only eager reads gates of other strides than contiguous ones."""
    module = importlib.import_module(f"hotplate.kernels.lstm_diagonal.{FILES[impl]}")

    def plain(gates: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gates = gates[:, :, :, 0]
        return gates if impl == "eager" else gates.contiguous(), None if resets is None else resets.contiguous()

    def forward(
        gates: Tensor,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        gates, resets = plain(gates, resets)
        results = module.forward(gates, recurrent, *_headless(h0, c0), resets, forget_offset, keep)
        h, h_last, c_last, saved = results
        return h[:, :, None], h_last[:, None], c_last[:, None], saved, saved.new_empty(0)

    def backward(
        dh: Tensor,
        dh_last: Tensor | None,
        dc_last: Tensor | None,
        h: Tensor,
        saved: Tensor,
        second: Tensor,
        gates: Tensor,
        recurrent: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        forget_offset: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates, resets = plain(gates, resets)
        arriving = dh[:, :, 0].contiguous(), *_headless(dh_last, dc_last)
        results = module.backward(*arriving, gates, recurrent, saved, resets, forget_offset)
        dgates, drecurrent, dh0, dc0 = results
        return dgates[:, :, :, None], drecurrent, dh0[:, None], dc0[:, None]

    def kept(B: int, T: int, H: int, K: int) -> Shapes:
        return module.saved_shape(B, T, K), (0,)

    return Form(forward, backward, kept, needs_gates=True)


_run = differentiable("lstm_diagonal", _form)


def lstm_diagonal(
    gates: Tensor,
    recurrent: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    forget_offset: float,
    impl: str,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See op.py. The weights go in wide: autograd rounds their gradient."""
    weights = recurrent.to(torch.promote_types(gates.dtype, torch.float32)).contiguous()
    one_head = (None if state is None else state[:, None] for state in (h0, c0))
    one_bias = None if bias is None else bias[:, None]
    h, h_last, c_last = _run(gates[:, :, :, None], weights, *one_head, resets, forget_offset, impl, one_bias)
    return h.squeeze(2), h_last.squeeze(1), c_last.squeeze(1)  # a view back, where [:, 0] would fill zeros
