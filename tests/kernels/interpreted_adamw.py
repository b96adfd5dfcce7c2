"""AdamW's Triton kernel in the interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
import updates

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("skip", [-1, 2])
def test_error_is_within_budget_and_a_skipped_update_changes_nothing(skip):
    updates.assert_the_definition("triton", "eager", skip)


def test_narrow_gradients_are_converted_as_they_are_read():
    updates.assert_the_definition("triton", "eager", skip=2, arriving=torch.float16)


def test_the_host_does_not_wait():
    updates.assert_the_host_does_not_wait("triton")


def test_copies_are_the_weights_rounded_and_runs_repeat():
    state, copies = updates.course("triton", copies=torch.float16)
    for weight, copy in zip(state[0], copies, strict=True):
        assert torch.equal(weight.half(), copy)
    updates.assert_same(updates.course("triton")[0], state)
