"""Layer images made for tests, as the filler makes them: metadata, and a data device in stripes."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headstart.content.digest import Digest
from headstart.content.erofs import DeviceGeometry, build
from headstart.content.layer.entry import EntryKind
from headstart.content.layer.inode import Inode
from headstart.content.layer.placement import Placement
from headstart.store.geometry import MIB, Geometry
from headstart.store.known_layer import KnownLayer
from mount.mounting.layer_mounts import LayerImage

EXTENT = MIB
"""Small, so that a file of some MiB lies in several extents."""

_numbers = itertools.count(1)


@dataclass(slots=True)
class Tree:
    """The files of a layer: an inode tree, and what the regular ones hold."""

    root: Inode = field(default_factory=lambda: Inode(EntryKind.DIRECTORY, 0o755, links=2))
    contents: dict[int, tuple[Inode, bytes]] = field(default_factory=dict)

    def add(self, path: str | bytes, inode: Inode, content: bytes = b"") -> Inode:
        """Put an inode at a path; the directories above it are there."""
        encoded = path.encode() if isinstance(path, str) else path
        *above, name = encoded.split(b"/")
        directory = self.root
        for part in above:
            directory = directory.children[part]
        if inode.kind is EntryKind.DIRECTORY:
            directory.links += 1
        directory.children[name] = inode
        if content:
            inode.size = len(content)
            self.contents[id(inode)] = inode, content
        return inode

    def file(self, path: str | bytes, content: bytes = b"", mode: int = 0o644) -> Inode:
        """A regular file."""
        return self.add(path, Inode(EntryKind.REGULAR, mode), content)

    def directory(self, path: str | bytes, mode: int = 0o755) -> Inode:
        """An empty directory."""
        return self.add(path, Inode(EntryKind.DIRECTORY, mode, links=2))

    def whiteout(self, path: str | bytes) -> Inode:
        """What hides a name of the layers below."""
        return self.add(path, Inode(EntryKind.CHARACTER, 0, device=(0, 0)))


def known_layer(name: str = "") -> KnownLayer:
    """A layer with digests of its own."""
    seed = f"{name or next(_numbers)}".encode()
    return KnownLayer(
        "registry.test",
        "team/app",
        Digest.of(b"blob " + seed),
        1000,
        Digest.of(b"tar " + seed),
        "application/vnd.oci.image.layer.v1.tar+gzip",
    )


def make_image(
    directory: Path,
    tree: Tree,
    *,
    stripes: int = 1,
    layer: KnownLayer | None = None,
    verified: bool = True,
) -> LayerImage:
    """Write a layer image to ``directory`` (made)."""
    directory.mkdir(parents=True)
    placement = Placement(EXTENT, stripes)
    for inode, content in tree.contents.values():
        inode.offset = placement.place(len(content))
    size = placement.device_size
    geometry = Geometry(size, EXTENT, stripes)
    meta = directory / "meta"
    meta.write_bytes(build(tree.root, DeviceGeometry(size, EXTENT, stripes)))
    devices = tuple(directory / f"device,{stripe}" for stripe in range(stripes))
    files = [device.open("wb") for device in devices]
    try:
        for inode, content in tree.contents.values():
            written = 0
            for run in geometry.runs(inode.offset, inode.offset + len(content)):
                files[run.stripe].seek(run.file_offset)
                files[run.stripe].write(content[written : written + run.length])
                written += run.length
        for stripe, file in enumerate(files):
            file.truncate(geometry.stripe_length(stripe))
    finally:
        for file in files:
            file.close()
    return LayerImage(layer or known_layer(), meta, devices, geometry, verified)


def small_image(
    directory: Path,
    files: Mapping[str, bytes] | None = None,
    *,
    layer: KnownLayer | None = None,
    verified: bool = True,
) -> LayerImage:
    """A layer image of a few small files."""
    tree = Tree()
    for name, content in (files or {"file": b"content\n"}).items():
        tree.file(name, content)
    return make_image(directory, tree, layer=layer, verified=verified)
