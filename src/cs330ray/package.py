"""The package itself: its version, its source, and the studies that come with it."""

from pathlib import Path

NAME = "cs330ray"
VERSION = "0.1.0"


def source() -> Path:
    """Find the folder of the package's code."""
    return Path(__file__).parent


def shipped() -> Path:
    """Find the studies that come with the package, in a checkout or in an installed wheel."""
    checkout = Path(__file__).parents[2] / "studies"
    return checkout if checkout.is_dir() else source() / "shipped"
