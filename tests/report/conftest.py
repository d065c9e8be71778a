"""The study with a made history, opened."""

from tests.made_study import study  # noqa: F401
