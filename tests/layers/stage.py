"""The processes of a test of layer images, and what it does with them."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.fill_client import FillClient
from headstart.store.known_layer import KnownChain
from headstart.store.open_layer import OpenLayer
from tests.content.erofs.mounted import mounted
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.faults.reading import read
from tests.layers.images import REPOSITORY, ServedImage
from tests.parts.mirror import Mirror, upstream_at


@dataclass(slots=True)
class Stage:
    """A running mirror and its upstream."""

    mirror: Mirror
    upstream: ScriptedUpstream

    @property
    def cache(self) -> Path:
        """The first stripe."""
        return self.mirror.stripes[0]

    def seen(self, image: ServedImage, repository: str = REPOSITORY) -> None:
        """A client has got the manifest and the configuration of an image, no layer."""
        for path in (f"manifests/{image.manifest}", f"blobs/{image.config}"):
            target = f"/v2/{repository}/{path}?ns={image.upstream.host}"
            reply = read(self.mirror.port, target, fields={"Accept": "*/*"})
            assert reply.status == 200, reply

    def fetched(self, digest: Digest) -> int:
        """Bytes of one blob that the upstream has sent."""
        requests = self.upstream.blob_requests()
        return sum(one.bytes_sent for one in requests if one.path.endswith(str(digest)))

    def files_below(self, name: str) -> list[Path]:
        """Files of blobs or of layer images in the cache."""
        return sorted(path for path in (self.cache / name).rglob("*") if path.is_file())

    def staged(self) -> list[int]:
        """What the filler holds of each blob in memory, in bytes."""
        found = []
        filler = self.mirror.process_id("proxy.fill.process")
        for descriptor in os.scandir(f"/proc/{filler}/fd"):
            try:
                if os.readlink(descriptor.path).startswith("/memfd:headstart-"):
                    found.append(os.stat(descriptor.path).st_blocks * 512)
            except OSError:
                continue
        return found

    @asynccontextmanager
    async def client(self) -> AsyncIterator[FillClient]:
        """A client of the filler, as the mount is one."""
        async with FillClient(self.cache / "run" / "fill.sock", "mount") as client:
            yield client

    @asynccontextmanager
    async def opened(
        self, client: FillClient, chain: Digest
    ) -> AsyncIterator[tuple[KnownChain, OpenLayer]]:
        """The layer image of a chain ID, wanted whole."""
        known = await client.chain(chain)
        assert known is not None, f"{chain} is not known"
        layer = await client.open_layer(known.layer)
        try:
            yield known, layer
        finally:
            client.close(layer)


@contextmanager
def running_stage(
    directory: Path, *, settings: Mapping[str, Mapping[str, object]] | None = None
) -> Iterator[Stage]:
    """A mirror of one scripted upstream; ``settings`` are sections of its configuration."""
    deadlines = {"deadlines": {"connect": "2s", "first_byte": "5s", "stall": "5s"}}
    given = dict(settings or {})
    given["fetch"] = {**deadlines, **given.get("fetch", {})}
    with ScriptedUpstream() as upstream:
        mirror = Mirror(
            directory / "mirror",
            {upstream.host: upstream_at(upstream.url)},
            settings=given,
        )
        with mirror:
            yield Stage(mirror, upstream)


@contextmanager
def tree_of(layer: OpenLayer, target: Path) -> Iterator[Path]:
    """The layer image, mounted from the store's own files."""
    with mounted(layer.meta.read_bytes(), layer.devices, target) as root:
        yield root


def contents(root: Path) -> dict[str, bytes]:
    """Every regular file below a directory."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = path.read_bytes()
    return found
