"""Prefetch lists in the index, by the manifest of the image that they are of.

The mirror writes them, the filler reads them when it begins a layer.
"""

import logging

from headstart.content.errors import InvalidInput
from headstart.content.landmarks.prefetch_list import PrefetchList, parse_prefetch_list
from headstart.store.index import type_json

logger = logging.getLogger(__name__)

LISTS = "prefetch-list"
KEEP_SECONDS = 90 * 24 * 3600.0
"""How long a list stays of which nobody begins a layer, and which nobody asks for."""


def list_record(listed: PrefetchList) -> type_json:
    """The record of a list."""
    return {"list": listed.encode().decode()}


def read_list(record: type_json | None) -> PrefetchList | None:
    """The list of a record; None without one, or where it cannot be read."""
    text = record.get("list") if record is not None else None
    if not isinstance(text, str):
        return None
    try:
        return parse_prefetch_list(text.encode())
    except InvalidInput as error:
        logger.warning("index: a prefetch list cannot be read: %s", error)
        return None
