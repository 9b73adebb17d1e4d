"""Prefetch lists in the index, by the manifest of the image that they are of.

The mirror writes them, the filler reads them when it begins a layer.
"""

import logging
import threading
from functools import lru_cache

from headstart.content.errors import InvalidInput
from headstart.content.landmarks.prefetch_list import PrefetchList, parse_prefetch_list
from headstart.store.index import type_json

logger = logging.getLogger(__name__)

LISTS = "prefetch-list"
KEEP_SECONDS = 90 * 24 * 3600.0
"""How long a list stays of which nobody begins a layer, and which nobody asks for."""

MOST_READ = 2
"""Lists that stay read: one of 20,000 files takes half a second, and each layer asks for it."""

_reading = threading.Lock()


def list_record(body: bytes) -> type_json:
    """The record of a list in any layout of its JSON; may take seconds. Raises InvalidInput."""
    return {"list": parse_prefetch_list(body).encode().decode()}


def listed_text(record: type_json | None) -> str | None:
    """The JSON of a record, in its one form; None without one."""
    text = record.get("list") if record is not None else None
    return text if isinstance(text, str) else None


def read_list(record: type_json | None) -> PrefetchList | None:
    """The list of a record; None without one, or where it cannot be read. May take seconds."""
    text = listed_text(record)
    if text is None:
        return None
    # The layers of an image are begun together: one reads, the others wait for it.
    with _reading:
        return _read(text)


@lru_cache(MOST_READ)
def _read(text: str) -> PrefetchList | None:
    try:
        return parse_prefetch_list(text.encode())
    except InvalidInput as error:
        logger.warning("index: a prefetch list cannot be read: %s", error)
        return None
