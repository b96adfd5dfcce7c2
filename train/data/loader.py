"""Batches made ahead of time by a thread, pinned and copied to the device beside the computation."""

import queue
import threading
import time
from collections.abc import Iterator

import torch

from hotplate.model.batch import Batch

POLL_SECONDS = 0.2  # how often a waiting side looks whether the other is still there


class Loader:
    """Iterates over (step, micro-batches) from `start_step` on, `depth` steps ahead of the consumer.

    `rows` are this rank's global rows; each step's are cut into `micro_batches` equal, consecutive parts. On
    a CUDA device tensors are pinned and copied on a stream of their own, and the consumer's stream waits for
    the copy. An exception in the thread is raised in the consumer. `wait_seconds` is the time the consumer
    has waited in all. Use as a context manager, or call `close()`.
    """

    def __init__(
        self,
        source,
        *,
        rows: range,
        micro_batches: int,
        device: torch.device | str,
        start_step: int = 0,
        depth: int = 2,
    ):
        if micro_batches < 1 or len(rows) % micro_batches or not len(rows):
            raise ValueError(f"Loader: want micro_batches that divide the {len(rows)} rows, got {micro_batches}")
        self._source, self._device = source, torch.device(device)
        self._rows = rows
        self._ready: queue.Queue = queue.Queue(maxsize=max(1, depth))
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.wait_seconds = 0.0
        self._begin(start_step, micro_batches)

    def _begin(self, step: int, micro_batches: int) -> None:
        size = len(self._rows) // micro_batches
        self._parts = [self._rows[start : start + size] for start in range(0, len(self._rows), size)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(step,), name="loader", daemon=True)
        self._thread.start()

    def recut(self, step: int, micro_batches: int) -> list[Batch]:
        """Step `step` once more, and all that follow, in another number of micro-batches, which divides the rows."""
        self.close()
        self._begin(step, micro_batches)
        return next(self)[1]

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        return self

    def __next__(self) -> tuple[int, list[Batch]]:
        began = time.perf_counter()
        step, batches, copied = self._take()
        self.wait_seconds += time.perf_counter() - began
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for batch in batches:
                _record_use(batch, stream)
        return step, batches

    def close(self) -> None:
        """Stop the thread and drop what it made; safe to call twice."""
        self._stop.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(POLL_SECONDS)
        self._drain()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def _take(self):
        while True:
            if self._stop.is_set():
                raise RuntimeError("Loader: want an open loader, got one that is closed")
            try:
                item = self._ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self._stop.set()
                raise item
            return item

    def _produce(self, step: int) -> None:
        try:
            while not self._stop.is_set():
                self._put(self._make(step))
                step += 1
        except BaseException as error:  # whatever it is, it belongs to the consumer
            error.add_note(f"while loading step {step} in the background")
            self._put(error)

    def _make(self, step: int):
        batches = [self._source.batch(step, part) for part in self._parts]
        if self._copies is None:
            return step, [batch.to(self._device) for batch in batches], None
        with torch.cuda.stream(self._copies):
            batches = [batch.pin_memory().to(self._device, non_blocking=True) for batch in batches]
            return step, batches, self._copies.record_event()

    def _put(self, item) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    def _drain(self) -> None:
        while not self._ready.empty():
            self._ready.get_nowait()


def _record_use(batch: Batch, stream: torch.cuda.Stream) -> None:
    """Keep the tensors' memory from reuse by the copying stream until `stream` is done with them."""
    for tensor in vars(batch).values():
        if tensor is not None:
            tensor.record_stream(stream)
