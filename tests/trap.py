"""A module that says so where it is imported: nothing may, by a directory's word alone."""

import os
from pathlib import Path

Path(os.environ["CS330RAY_TRAP"]).touch()
