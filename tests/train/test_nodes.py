"""Two nodes on one machine: two agents of torchrun that meet at 127.0.0.1, beside ranks of one node."""

import signal
import socket
from pathlib import Path

import pytest
from runs import losses
from tiny import ROOT, TINY

from hotplate.bench.faults.nursery import Nursery
from hotplate.train import checkpoint

EPS = "--optimizer.eps=1e-4"  # with a tiny eps, Adam's first updates are the signs of rounding errors


def on_nodes(nursery: Nursery, nodes: int, each: int, flags: list[str]) -> None:
    """A run over so many nodes of `each` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [
        *(f"--nnodes={nodes}", f"--nproc-per-node={each}", "--rdzv-backend=c10d"),
        *(f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two", "--local-addr=127.0.0.1"),
    ]
    agents = [nursery.torchrun(agent, ROOT / "train" / "main.py", *flags) for _ in range(nodes)]
    try:
        for started in agents:
            assert started.wait(200) == 0, started.text[-3000:]
    finally:
        for started in agents:
            started.send(signal.SIGTERM)


@pytest.mark.parametrize(
    ("each", "engine"), [(1, []), (2, ["--engine=fsdp", "--engine.replicas=2"])], ids=["ddp", "hybrid"]
)
def test_ranks_of_two_nodes_equal_one_rank(
    prepared: Path, nursery, train_tiny, tmp_path: Path, each: int, engine: list[str]
) -> None:
    """hybrid: each node holds the whole model, its two ranks a half of it each."""
    brief = [f"--data.source={prepared}", "--budget=4steps", "--evaluation.every=0", "--evaluation.splits", EPS]
    run = [*TINY, *brief, "--evaluation.sample-tokens=0", *engine, f"--run.folder={tmp_path / 'two'}"]
    on_nodes(nursery, 2, each, run)
    found = losses(tmp_path / "two")
    assert len(found) == 4
    saved = checkpoint.load(checkpoint.listing(tmp_path / "two" / "checkpoints")[-1])
    assert len([name for name in saved.manifest.files if name.startswith("model-")]) == 2 * each
    assert train_tiny(*brief[1:], "--evaluation.sample-tokens=0", "--run.folder=one") == 0
    for (_, x), (_, y) in zip(losses(tmp_path / "one"), found, strict=True):
        assert y == pytest.approx(x, abs=2e-6)
