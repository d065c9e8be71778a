"""Texts that many modules print: numbers, parameters, durations, plurals, quoted values, addresses, first lines."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

# Numbers and values ------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 4) -> str:
    """Write a number in so many significant digits: `0.8402`."""
    return f"{value:.{digits}g}"


def shown(value: Any) -> str:
    """Write a value of a configuration: a float in four digits, all else as it is."""
    return number(value) if isinstance(value, float) else str(value)


def params(values: Mapping[str, Any], between: str = " ") -> str:
    """Write parameters in one line: `inner_lr=0.4 body=pooled`."""
    return between.join(f"{name}={shown(value)}" for name, value in values.items())


def duration(seconds: float) -> str:
    """Write seconds as people say them: 42s, 3m 05s, 2h 10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def plural(count: int, noun: str, several: str = "") -> str:
    """Count things: `1 fresh seed`, `5 fresh seeds`, `2 searches`."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or noun + 's'}"


# What others have written ------------------------------------------------------------------------------------------


def short(value: object, length: int = 60) -> str:
    """Quote a value as Python writes it, cut where it is long; at most `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str) -> str:
    """Make a text of others safe for a terminal: no colours, no moves of the cursor, nothing that cannot be seen.

    What a progress bar drew over stays out, as on a terminal; all else that is not to be seen is escaped as in Python.
    """
    lines = _SEQUENCE.sub("", text.replace("\r\n", "\n")).split("\n")
    text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\^-~])")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def redacted(text: str) -> str:
    """Hide what opens something: names and passwords of addresses, and what the environment keeps as a secret.

    What libraries quote in another form, decoded or alone, is found by its value, and first, while it is whole: the
    secrets in the environment's addresses and variables. Takes time in proportion to the text, whatever it holds.
    """
    for secret in secrets():
        if secret in text:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9]|://)", "***", text)
    return _NAMED.sub(r"\1***", _OPENING.sub("***@", text))


def secrets() -> list[str]:
    """Find the secrets in this process's environment, in each form in which a library may quote them, longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name):
            found.update(_forms(value, SHORTEST_IN_VARIABLE))
        if "://" in value:
            for each in _in_address(value):
                found.update(_forms(each, SHORTEST_SECRET))
    return sorted(found, key=len, reverse=True)


def _forms(secret: str, shortest: int) -> Iterator[str]:
    for form in (secret, unquote(secret), quote(unquote(secret), "", None, "surrogateescape"), repr(secret)[1:-1]):
        if len(form) >= shortest and form.lower() not in PLAIN_WORDS:
            yield form


def _in_address(value: str) -> Iterator[str]:
    """The passwords, or the tokens in their place, and the secret parameters of an address, or of several."""
    for match in _AUTHORITY.finditer(value):
        user, colon, password = match[2].partition(":")
        if colon or match[1].startswith("http"):
            yield password if colon else user
    scheme, _, rest = value.partition("://")  # once more with a password that holds `/`, as database drivers read it
    user, colon, password = rest.rpartition("@")[0].partition(":")
    is_port = scheme.startswith(("http", "file")) and re.match(r"\d*/", password)
    if colon and not is_port and re.fullmatch(r"[\w+.-]+", scheme) and not re.search(r"[/?#\[]", user):
        yield password
    for match in _NAMED.finditer(value):
        yield match[2]


SHORTEST_SECRET = 4  # a shorter one is hidden in addresses alone: it is part of any text
SHORTEST_IN_VARIABLE = 6  # a variable named like a secret may hold a switch or a common word
PLAIN_WORDS = {
    "true", "false", "none", "null", "default", "user", "admin", "root", "guest", "test", "password", "secret", "token",
    "localhost", "postgres", "postgresql", "mlflow", "optuna", "cs330ray",
}  # as a password they protect nothing, and hidden they would spoil most messages  # fmt: skip
# What stands before the last `@` of an address. `user:` opens a password, which may hold `/`; `host:5000/` does not.
_OPENING = re.compile(
    r"""(?x) (?<=[A-Za-z0-9+.-]://)
    (?: (?!\[) [^\s"<>/?\#:@]*+ : (?!\d{0,5}[/?\#]) (?: (?: [^\s"<>:@]++ | :(?!//) )*+ @ )+
      | (?: [^\s"<>/?\#@]*+ @ )+ )"""
)
_AUTHORITY = re.compile(r'(https?|[A-Za-z0-9+.-])://([^\s"<>/?#]+)@')
# A parameter of an address, of a connection, of JSON. The name begins where it says so: what stands before it stays.
_NAMED = re.compile(
    r"""(?ix)
    ( (?<!\bn_) (?<!\bnum_)
      (?: password | passwd | passphrase | signature | (?:access|api|account|secret)[_-]?key | (?<!\w)(?:pwd|sig)
        | (?: secret | credentials? | (?:access|auth|session|security|refresh|sas|tracking)[_-]?token | (?<!\w)token )
          (?! =\d{1,3}(?![^\s,;&)\]}]) ) )     # a small number counts something
      (?: =['"]? | ['"]:\ ?['"] ) )
    (?! (?:true|false|none|null)(?![^\s,;&)\]}'"]) )
    ( (?<=") (?: [^"\\\n]++ | \\. )++ | (?<=') (?: [^'\\\n]++ | \\. )++ | [^&;\s'"]*[^&;\s'",)\]}] )"""
)
_SECRET_VARIABLE = re.compile(r"(?i)(password|passwd|token|secret|(access|api|account|secret)_key)$")


def first_line(error: BaseException) -> str:
    """Take the first line of an error that says something, or the name of its class."""
    return first_line_of(_message(error), type(error).__name__)


def first_line_of(text: str, otherwise: str = "") -> str:
    """Take the first line of a text that says something, or `otherwise`."""
    return next((line.strip() for line in text.splitlines() if line.strip()), otherwise)


def typed_first_line(error: BaseException) -> str:
    """Say an error in one line: its type, the first line of its message that says something, and its notes.

    `ValueError: shapes do not fit (see the guide)`; of a group, what its first errors are:
    `ExceptionGroup: two folds (2 sub-exceptions): ValueError: one; KeyError: 'two'`. At most `LONGEST_REASON`
    characters, all of them printable, and without secrets.
    """
    line = redacted(_typed(error, _LEVELS)[:_LONGEST_LOOKED_AT])  # before it is cut: half a secret is not known as one
    line = line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 3]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


LONGEST_REASON = 500
_LONGEST_LOOKED_AT = 20_000  # characters of a message in which a reason looks for secrets
_LEVELS, _OF_A_GROUP = 3, 3  # groups within groups, and errors of each, that a line names


def _typed(error: BaseException, levels: int) -> str:
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    said = first_line_of(_message(error))
    line = f"{name}: {said}" if said else name
    notes = [first_line_of(str(note)) for note in getattr(error, "__notes__", None) or ()]
    if told := "; ".join(note for note in notes if note):
        line += f" ({told})"
    if isinstance(error, BaseExceptionGroup) and levels:
        held = [_typed(each, levels - 1) for each in error.exceptions[:_OF_A_GROUP]]
        line += ": " + "; ".join([*held, *(["..."] if len(error.exceptions) > _OF_A_GROUP else [])])
    return line


def _message(error: BaseException) -> str:
    """What an error says of itself; of one that cannot, that it raised what."""
    try:
        return str(error)
    except Exception as fault:  # noqa: BLE001 - whatever a class of somebody's does
        return f"its message cannot be read: str() raised {type(fault).__name__}"
