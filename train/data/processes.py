"""Work on documents in parallel processes, with the results in the documents' order."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from hotplate.train.data.documents import Document
from hotplate.train.errors import InputError

GROUP_BYTES = 1 << 20  # text sent to a worker at a time: far more work than its pickling

Result = TypeVar("Result")


def in_order(
    function: Callable[[list[Document]], list[Result]], documents: Iterable[Document], workers: int
) -> Iterator[Result]:
    """The results of `function`, one per document, in the documents' order; groups of documents go to `workers`
    processes.

    At most two groups of about 1 MiB per worker are in memory. `workers` <= 1 works in this process. `function` is
    sent to the processes, so it is a module's function, or a `partial` of one.
    """
    groups = _groups(documents)
    if workers <= 1:
        for group in groups:
            yield from function(group)
        return
    context = multiprocessing.get_context("spawn")  # safe whatever threads or devices this process has
    with ProcessPoolExecutor(workers, context, _exit_with_parent) as pool:
        waiting: deque[Future] = deque()
        try:
            for group in groups:
                waiting.append(pool.submit(function, group))
                if len(waiting) > 2 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process died: out of memory, or a calling script without "
                "`if __name__ == '__main__':`; pass --workers 1 to work in one process"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in runs of about `GROUP_BYTES` characters."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _exit_with_parent() -> None:
    """End this worker when its parent is killed; the pool's own pipes would keep it waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
