"""Sizes, durations and shares as people write them, both ways."""

import re
from decimal import Decimal

from headstart.content.errors import InvalidInput

SIZE_UNITS = {
    "TiB": 1 << 40,
    "TB": 10**12,
    "GiB": 1 << 30,
    "GB": 10**9,
    "MiB": 1 << 20,
    "MB": 10**6,
    "KiB": 1 << 10,
    "KB": 10**3,
    "B": 1,
}
"""Bytes of a unit: powers of 1024 with an i, of 1000 without."""

DURATION_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Seconds of a unit."""

_UNITS = {name.lower(): size for name, size in SIZE_UNITS.items()} | {"": 1}
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,6})?"
_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|[hms]))+")
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|[hms])")
_NUMBER_ALONE = re.compile(_NUMBER)
_PERCENT = re.compile(rf"({_NUMBER})\s*%")


def parse_size(text: str) -> int:
    """Bytes of ``32MiB``, ``1.5GB`` or ``4096``. Raises InvalidInput."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].lower() not in _UNITS:
        raise InvalidInput("size", text, "write a size such as 32MiB or 1GB")
    size = Decimal(found[1]) * _UNITS[found[2].lower()]
    if size != int(size):
        raise InvalidInput("size", text, "write a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """The shortest exact form: 33554432 is ``32MiB``, 60000000 ``60MB``."""
    for unit, factor in SIZE_UNITS.items():
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def show_size(size: float) -> str:
    """A size for people to read, rounded: ``1.5 GiB``, ``312 MiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= SIZE_UNITS[unit]:
            number = size / SIZE_UNITS[unit]
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{size:.0f} B"


def parse_duration(text: str) -> float:
    """Seconds of ``500ms``, ``5s``, ``1m30s`` or a bare number. Raises InvalidInput."""
    written = text.strip()
    if _NUMBER_ALONE.fullmatch(written):
        return float(written)
    if not _DURATION.fullmatch(written):
        raise InvalidInput("duration", text, "write a duration such as 500ms, 5s or 2m")
    return sum(
        float(number) * DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(written)
    )


def format_duration(seconds: float) -> str:
    """The shortest exact form: 120 is ``2m``, 1.5 ``1500ms``."""
    for unit, factor in DURATION_UNITS.items():
        number = seconds / factor
        if seconds and number >= 1 and abs(number - round(number)) < 1e-9:
            return f"{round(number)}{unit}"
    written = f"{seconds * 1000:.6f}".rstrip("0").rstrip(".")
    return f"{written}ms" if float(written) else "0s"


def parse_percent(text: str) -> float:
    """Hundredths, from 0 to 100, of ``80%``. Raises InvalidInput."""
    found = _PERCENT.fullmatch(text.strip())
    if found is None or float(found[1]) > 100:
        raise InvalidInput("share", text, "write a share from 1% to 100%")
    return float(found[1])
