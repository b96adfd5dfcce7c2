"""Where documents start, for loops over steps in plain torch. Letters: B rows, T steps."""

from torch import Tensor


def steps_that_reset(resets: Tensor | None, T: int) -> list[bool]:
    """Steps at which a row may be reset: every step on a GPU, which is not stopped to ask."""
    if resets is None:
        return [False] * T
    return resets.any(0).tolist() if resets.device.type == "cpu" else [True] * T
