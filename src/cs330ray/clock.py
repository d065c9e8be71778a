"""The one clock: every wall time that is recorded is read here. Durations are measured by `time.monotonic` instead.

CS330RAY_CLOCK may name a file with a number of seconds that is added: so a test can let the clock jump.
"""

import os
import time
from pathlib import Path


def wall_s() -> float:
    """Seconds since the epoch; it may jump, forwards or back."""
    file = os.environ.get("CS330RAY_CLOCK")
    return time.time() + (float(Path(file).read_text()) if file else 0.0)
