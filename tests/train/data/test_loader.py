import threading
import traceback

import pytest
import torch

from hotplate.model.batch import Batch
from hotplate.train.data.loader import Loader
from hotplate.train.errors import InputError


class CountingSource:
    """Batches that say which step and rows they are; breaks at a step."""

    def __init__(self, breaks_at=None, error=InputError):
        self.breaks_at, self.error, self.made = breaks_at, error, []

    def batch(self, step, rows):
        if step == self.breaks_at:
            raise self.error("x.tokens: id 9 at offset 3")
        self.made.append((step, rows))
        tokens = torch.tensor([[step, row] for row in rows])
        zeros = torch.zeros_like(tokens)
        return Batch(tokens, tokens, zeros.float(), zeros, zeros.int())


def _take(loader, count):
    return [next(loader) for _ in range(count)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_steps_in_order_cut_into_micro_batches(depth):
    with Loader(
        CountingSource(), rows=range(4, 10), micro_batches=3, device="cpu", start_step=7, depth=depth
    ) as loader:
        for want, (step, batches) in zip(range(7, 20), loader, strict=False):
            assert step == want
            assert [batch.tokens.tolist() for batch in batches] == [
                [[step, 4], [step, 5]],
                [[step, 6], [step, 7]],
                [[step, 8], [step, 9]],
            ]
    assert loader.wait_seconds > 0


def test_it_works_no_further_ahead_than_depth():
    source = CountingSource()
    with Loader(source, rows=range(1), micro_batches=1, device="cpu", depth=2) as loader:
        _take(loader, 3)
        # Two wait in the queue and one in the thread's hands.
        assert max(step for step, _ in source.made) <= 2 + 2 + 1


@pytest.mark.parametrize("error", [InputError, RuntimeError, KeyError])
def test_exceptions_reach_the_consumer_with_their_origin(error):
    with Loader(CountingSource(3, error), rows=range(2), micro_batches=1, device="cpu") as loader:
        assert [step for step, _ in _take(loader, 3)] == [0, 1, 2]
        with pytest.raises(error, match="id 9 at offset 3") as caught:
            next(loader)
        assert caught.value.__notes__ == ["while loading step 3 in the background"]
        assert "test_loader.py" in "".join(traceback.format_exception(caught.value))
        with pytest.raises(RuntimeError, match="want an open loader"):
            next(loader)


def test_close_is_final_and_repeatable():
    loader = Loader(CountingSource(), rows=range(2), micro_batches=1, device="cpu")
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="want an open loader"):
        next(loader)


@pytest.mark.parametrize("micro_batches", [0, 4, 7])
def test_micro_batches_must_divide_the_rows(micro_batches):
    with pytest.raises(ValueError, match=f"divide the 6 rows, got {micro_batches}"):
        Loader(CountingSource(), rows=range(6), micro_batches=micro_batches, device="cpu")
