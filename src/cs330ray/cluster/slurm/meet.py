"""Wait until the Ray at RAY_ADDRESS has so many nodes: `python -m cs330ray.cluster.slurm.meet 2`.

A process of its own, since Ray takes the signals of the one that it is in for itself.
"""

import os
import sys
import time

import ray

JOIN_S = 300.0
LOOK_S = 0.2


def main(nodes: int) -> int:
    """Wait; the exit code, 1 where some did not come in time."""
    until, there = time.monotonic() + JOIN_S, 0
    while time.monotonic() < until:
        try:
            if not ray.is_initialized():
                ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="CRITICAL")
            there = sum(bool(node["Alive"]) for node in ray.nodes())
        except (ConnectionError, RuntimeError):  # it is about to start
            pass
        if there >= nodes:
            return 0
        time.sleep(LOOK_S)
    sys.stderr.write(
        f"--nodes: Ray must run on {nodes} nodes within {JOIN_S:.0f} s, but it runs on {there}; see ray-*.log in "
        "the folder of the job, and where nodes cannot reach one another submit with --nodes 1\n"
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
