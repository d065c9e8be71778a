"""Texts that many modules print: numbers, parameters, durations, plurals, redacted addresses, first lines."""

import re
import traceback


def redacted(text: str) -> str:
    """Hide the name and password of an address in a text; the text for messages."""
    hidden = re.sub(r"//\S*@", "//***@", text)
    return re.sub(r"(password|passwd|token|secret)=[^&\s]*", r"\1=***", hidden)


def typed_first_line(error: BaseException) -> str:
    """Say an error as Python does, in one line: `ValueError: no such file`."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]
