import subprocess
import sys

import pytest

WORK = """
import resource, torch
from cs330ray.training.device import device
device()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    kept = [torch.ones(1_000_000) for _ in range(20)]
work()
before = faults()
for _ in range(20):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what the GNU C library does with freed memory")
def test_memory_that_tensors_free_is_kept_for_the_next():
    pages = 20 * 20 * 4_000_000 // 4096
    ran = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < pages / 50
