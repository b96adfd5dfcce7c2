"""Counts of training steps on a stand-in GPU: `python -m hotplate.bench.stand_in.worker WORKLOAD...` prints them
as JSON, by workload. The library comes before torch, and the device before whatever remembers what torch.cuda says."""

import json
import sys
from collections.abc import Sequence

from hotplate.bench.stand_in import library

CAPABILITY = 90


def main(workloads: Sequence[str]) -> int:
    loaded = library.load()
    from hotplate.bench.stand_in import device

    device.install(CAPABILITY, loaded)
    from hotplate.bench.stand_in import steps

    print(json.dumps(steps.measure(workloads)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
