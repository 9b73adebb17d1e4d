"""A list and an image's files: which layer has a listed one, and what holds for the next image."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from headstart.content.digest import Digest
from headstart.content.landmarks.prefetch_list import ListedFile, PrefetchList

Contents = Mapping[Digest, Mapping[bytes, Digest | None]]
"""The layers of an image by their blobs' digests, the base first: the paths of their regular files,
and the digests of their contents, None where only the path is known."""


class Fitted(NamedTuple):
    """A list whose files are all in an image, and how many it has lost for that."""

    listed: PrefetchList
    dropped: int


def identify(listed: PrefetchList, contents: Contents) -> Fitted:
    """Say of each file the digests of its layer and of its content.

    A file whose layer is not known is that of the uppermost layer that has its path. Dropped are
    files that their layer has not. A file that a whiteout hides stays: it is fetched in vain.
    """
    layers = tuple(contents)
    uppermost = _uppermost(contents)
    kept: list[ListedFile] = []
    for file in listed.files:
        layer = file.layer
        if layer is None:
            layer = uppermost.get(file.path)
        elif isinstance(layer, int):
            layer = layers[layer] if layer < len(layers) else None
        if layer is not None and file.path in contents.get(layer, ()):
            digest = contents[layer][file.path]
            kept.append(replace(file, layer=layer, digest=digest or file.digest))
    return _fitted(listed, kept)


def carry_over(listed: PrefetchList, contents: Contents) -> Fitted:
    """The list for another image of the same repository, from one with digests.

    Kept are files that the other image shows with the same path and the same content: by their
    digests, or because it has the same layer. All others are dropped.
    """
    uppermost = _uppermost(contents)
    kept: list[ListedFile] = []
    for file in listed.files:
        layer = uppermost.get(file.path)
        if layer is None:
            continue
        digest = contents[layer][file.path]
        same_content = digest is not None and digest == file.digest
        if same_content or layer == file.layer:
            kept.append(replace(file, layer=layer, digest=digest or file.digest))
    return _fitted(listed, kept)


def _uppermost(contents: Contents) -> dict[bytes, Digest]:
    """The layer that a path is seen in."""
    found: dict[bytes, Digest] = {}
    for layer, files in contents.items():
        found.update(dict.fromkeys(files, layer))
    return found


def _fitted(listed: PrefetchList, kept: Iterable[ListedFile]) -> Fitted:
    files = tuple(kept)
    return Fitted(PrefetchList(files), len(listed.files) - len(files))
