"""Two nodes on one machine: two agents of torchrun that meet at 127.0.0.1, beside ranks of one node."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from runs import losses
from tiny import ROOT, TINY

from hotplate.train import checkpoint

EPS = "--optimizer.eps=1e-4"  # with a tiny eps, Adam's first updates are the signs of rounding errors


def on_nodes(nodes: int, each: int, flags: list[str]) -> None:
    """A run over so many nodes of `each` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={each}"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two", "--local-addr=127.0.0.1"),
        *(str(ROOT / "train" / "main.py"), *flags),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    agents = [subprocess.Popen(agent, env=environment, **pipes) for _ in range(nodes)]
    try:
        for started in agents:
            said, _ = started.communicate(timeout=200)
            assert started.returncode == 0, said[-3000:]
    finally:
        for started in agents:
            started.kill()


@pytest.mark.parametrize(
    ("each", "engine"), [(1, []), (2, ["--engine=fsdp", "--engine.replicas=2"])], ids=["ddp", "hybrid"]
)
def test_ranks_of_two_nodes_equal_one_rank(
    prepared: Path, train_tiny, tmp_path: Path, each: int, engine: list[str]
) -> None:
    """hybrid: each node holds the whole model, its two ranks a half of it each."""
    brief = [f"--data.source={prepared}", "--budget=4steps", "--evaluation.every=0", "--evaluation.splits", EPS]
    on_nodes(2, each, [*TINY, *brief, "--evaluation.sample-tokens=0", *engine, f"--run.folder={tmp_path / 'two'}"])
    found = losses(tmp_path / "two")
    assert len(found) == 4
    saved = checkpoint.load(checkpoint.listing(tmp_path / "two" / "checkpoints")[-1])
    assert len([name for name in saved.manifest.files if name.startswith("model-")]) == 2 * each
    assert train_tiny(*brief[1:], "--evaluation.sample-tokens=0", "--run.folder=one") == 0
    for (_, x), (_, y) in zip(losses(tmp_path / "one"), found, strict=True):
        assert y == pytest.approx(x, abs=2e-6)
