"""Paths as lists from outside have them."""

from headstart.content.errors import InvalidInput
from headstart.content.layer.caps import DEFAULT_CAPS
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.names import clean, shown


def clean_path(path: bytes, field: str) -> bytes:
    """The path from the layer's root, as the layer's tree has it.

    Raises InvalidInput, which names ``field``, for the root and for what no layer has.
    """
    try:
        cleaned = clean(path, DEFAULT_CAPS)
    except LayerRefused as error:
        raise InvalidInput(field, _text(path), f"no file has it: {error}") from error
    if not cleaned:
        raise InvalidInput(field, _text(path), "write the path of a file")
    return cleaned


def cleaned_path(path: bytes, field: str) -> bytes:
    """The same path, which has to be clean. Raises InvalidInput, which names ``field``."""
    cleaned = clean_path(path, field)
    if cleaned != path:
        raise InvalidInput(field, _text(path), f"write it as {shown(cleaned)}")
    return path


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
