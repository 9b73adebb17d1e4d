"""What a layer's descriptor says of its TOC; the manifest that holds it is verified."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.estargz.caps import DEFAULT_TOC_CAPS, TocCaps
from headstart.content.estargz.footer import TocLocation, zstd_location
from headstart.content.layer.errors import LayerRefused

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
"""The digest of the uncompressed TOC (stargz-snapshotter, docs/estargz.md)."""

_ZSTD_PREFIXES = ("io.github.containers.zstd-chunked.", "io.containers.zstd-chunked.")
"""Of the annotations of containers/storage: since 2023, and before (stargz-snapshotter: still)."""

_CHECKSUM = "manifest-checksum"
_POSITION = "manifest-position"

_NUMBERS = re.compile(r"([0-9]{1,19}):([0-9]{1,19}):([0-9]{1,19}):([0-9]{1,19})")


@dataclass(frozen=True, slots=True)
class AnnouncedToc:
    """At least one of the digests is there; ``location`` is of zstd:chunked only."""

    json_digest: Digest | None
    compressed_digest: Digest | None
    location: TocLocation | None


def announced_toc(
    annotations: Mapping[str, str], blob_size: int, caps: TocCaps = DEFAULT_TOC_CAPS
) -> AnnouncedToc | None:
    """The TOC that the annotations of a layer's descriptor announce; None for an ordinary layer.

    Raises LayerRefused for annotations that say nothing sensible.
    """
    json_digest = _digest(annotations, TOC_DIGEST)
    for prefix in _ZSTD_PREFIXES:
        compressed_digest = _digest(annotations, prefix + _CHECKSUM)
        position = annotations.get(prefix + _POSITION)
        if compressed_digest is not None and position is not None:
            return AnnouncedToc(
                json_digest, compressed_digest, _location(position, blob_size, caps)
            )
    return AnnouncedToc(json_digest, None, None) if json_digest is not None else None


def _digest(annotations: Mapping[str, str], name: str) -> Digest | None:
    text = annotations.get(name)
    if text is None:
        return None
    try:
        return Digest.parse(text)
    except InvalidInput as error:
        raise LayerRefused(f"its annotation {name} is no digest: {text!r:.100}") from error


def _location(text: str, blob_size: int, caps: TocCaps) -> TocLocation:
    """Read ``OFFSET:COMPRESSED SIZE:UNCOMPRESSED SIZE:KIND``."""
    found = _NUMBERS.fullmatch(text)
    if found is None:
        raise LayerRefused(f"its annotation {_POSITION} is not four numbers: {text!r:.100}")
    return zstd_location([int(number) for number in found.groups()], blob_size, blob_size, caps)
