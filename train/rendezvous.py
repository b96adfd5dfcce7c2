"""How ranks find each other under torchrun, also after it has restarted them.

torchrun's agent keeps one key-value store over all restarts, and torch writes the ranks' addresses into it under the
same keys each time: a restarted rank may read the address of a process that is dead, and wait for it
(pytorch/pytorch#135712). On one node the keys get the number of the restart. Over nodes those numbers differ between
agents; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment gives every attempt a store of its own.
"""

import datetime
import os

import torch.distributed as dist

from hotplate.train import console

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def join(backend: str, timeout: datetime.timedelta) -> None:
    """Initialise the default process group from torchrun's environment."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts, allowed = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if not shared or not allowed:
        dist.init_process_group(backend, timeout=timeout)
        return
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        if os.environ.get("RANK") == "0":
            console.complain(f"warning: torchrun restarts over nodes may hang: set {OWN_STORE}=1 in its environment")
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    attempt = dist.PrefixStore(f"attempt-{restarts}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world, timeout=timeout)
