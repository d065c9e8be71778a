"""transformers, which takes seconds to import: asked for by name, kept quiet, and its errors in one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cs330ray.errors import DataError, SpecError
from cs330ray.words import first_line


def settle_hub() -> None:
    """Import what holds the Hugging Face hub's settings, with no telemetry and, but at a terminal, no bars.

    It reads them from the environment when it is imported; the environment is left as it was.
    """
    wanted = ["HF_HUB_DISABLE_TELEMETRY", *([] if sys.stderr.isatty() else ["HF_HUB_DISABLE_PROGRESS_BARS"])]
    unset = {name: "1" for name in wanted if name not in os.environ}
    os.environ.update(unset)
    try:
        import huggingface_hub.constants  # noqa: F401
    finally:
        for name in unset:
            del os.environ[name]


def import_transformers(model: str) -> Any:
    """Import transformers, which takes seconds; raises SpecError without it."""
    settle_hub()
    try:
        import gguf  # noqa: F401
        import transformers
    except ImportError:
        raise SpecError(f"{model}: language models need the extra: pip install 'cs330ray[lm]'") from None
    return transformers


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Keep transformers from writing bars and reports of what is checked here anyway."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def one_line(folder: Path, rule: str) -> Iterator[None]:
    """Turn whatever loading raises into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - tokenizers and safetensors raise classes of their own, and Exception
        reason = first_line(error)
        raise DataError(f"{folder}: it must hold {rule}, but {reason}; download it anew") from None
