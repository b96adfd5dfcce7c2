"""Bytes of tensors that are alive, and the most there were."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor


class Live:
    """Hears of tensors as operations take and make them; counts each storage that was made, while it lives."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def known(self, tensors: Iterable[Tensor]) -> None:
        """These were there before: views of them and results in place are not new."""
        for x in tensors:
            self._known.add(x.untyped_storage())

    def made(self, tensors: Iterable[Tensor]) -> None:
        """These are results."""
        for x in tensors:
            storage = x.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size
