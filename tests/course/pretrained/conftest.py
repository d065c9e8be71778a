"""The fixtures of the data, which language models are kept like."""

from tests.course.data.conftest import cold_cache, given, session_cache, warm_cache  # noqa: F401
