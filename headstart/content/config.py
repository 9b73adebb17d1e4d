"""The image configuration, of which only the layers' identities are read.

OCI image specification, config.md: ``rootfs.diff_ids`` and "Layer ChainID".
"""

import hashlib
import json
from collections.abc import Sequence

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput

MOST_BYTES = 4 * 1024 * 1024
"""Of a configuration; containerd reads no larger one either."""


def read_diff_ids(body: bytes) -> tuple[Digest, ...]:
    """The digests of the layers' tars, the base first. Raises InvalidInput."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    rootfs = document.get("rootfs") if isinstance(document, dict) else None
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise InvalidInput("image configuration", "", "it has no rootfs.diff_ids")
    return tuple(Digest.parse(text) for text in listed)


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """The chain ID that ends with each layer: it names the layer together with all below it."""
    chains: list[Digest] = []
    for diff_id in diff_ids:
        if chains:
            text = f"{chains[-1]} {diff_id}"
            chains.append(Digest("sha256", hashlib.sha256(text.encode("ascii")).hexdigest()))
        else:
            chains.append(diff_id)
    return tuple(chains)
