"""What is wrong with a configuration, in one line: key, value, problem, remedy, place."""

import difflib
import re
from collections.abc import Callable, Iterable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headstart.content.errors import InvalidInput

Key = tuple[str | int, ...]
"""The names and list positions that lead to a value."""


class BadValue(ValueError):
    """What is wrong with a value (``problem``), and what to write instead (``remedy``).

    ``below`` leads from the value that was being read to the part that is at fault; ``secret``
    values are not repeated.
    """

    def __init__(self, problem: str, remedy: str, *, below: Key = (), secret: bool = False) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.below = below
        self.secret = secret


class ConfigurationError(ValueError):
    """A configuration that cannot be used; ``str()`` is one line.

    ``field`` is the dotted key (empty for the whole file), ``value`` the text of the value where
    one is at fault, ``remedy`` what to write, ``place`` the file and line or the variable.
    """

    def __init__(
        self,
        field: str,
        value: str | None,
        problem: str,
        remedy: str,
        place: str | None = None,
    ) -> None:
        self.field = field
        self.value = value
        self.problem = problem
        self.remedy = remedy
        self.place = place
        subject = f"{field}:" if field else "the configuration"
        ending = f" ({place})" if place else ""
        line = f"{subject} {value or ''} {problem}; {remedy}{ending}"
        super().__init__(" ".join(line.split()))


def dotted(key: Key) -> str:
    """A key as people write it: ``cache.stripes[0].path``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(word: str, known: Iterable[str]) -> str:
    """The remedy for a word that is not ``known``: the one that was probably meant."""
    words = list(known)
    close = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(words)}"


def complaint(refusal: ValidationError, place: Callable[[Key], str | None]) -> ConfigurationError:
    """The first thing that pydantic refused; ``place`` says where a key stands."""
    details = refusal.errors(include_url=False)[0]
    key: Key = tuple(part for part in details["loc"] if part != "[key]")
    cause = details.get("ctx", {}).get("error")
    value = _printed(details["input"])
    if isinstance(cause, BadValue):
        problem, remedy = cause.problem, cause.remedy
        key += cause.below
        value = None if cause.secret or cause.below else value
    elif isinstance(cause, InvalidInput):
        problem, remedy = "is refused", cause.remedy
    else:
        problem, remedy = _plain_words(details)
    if details["type"] == "missing":
        value = None
    return ConfigurationError(dotted(key), value, problem, remedy, place(key))


def _plain_words(details: ErrorDetails) -> tuple[str, str]:
    """Problem and remedy for what pydantic checks by itself."""
    kind = details["type"]
    if kind == "missing":
        return "is missing", "write it"
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", details["ctx"]["expected"])
        return "is none of its words", nearest(str(details["input"]), words)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "is no mapping", "write KEY: VALUE lines below it"
    if kind == "too_short":
        return "names nothing", "name at least one"
    if kind in ("bool_parsing", "bool_type"):
        return "is neither true nor false", "write true or false"
    return f"is refused: {details['msg']}", "config.yaml as shipped shows the form"


def _printed(value: object) -> str | None:
    """A scalar as it may stand in a line; None for what has no short form."""
    if isinstance(value, str):
        return repr(value if len(value) <= 100 else value[:97] + "...")
    return str(value) if isinstance(value, bool | int | float) else None
