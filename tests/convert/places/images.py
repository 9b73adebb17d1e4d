"""Copies whole images between places, as the command does that walks them."""

from collections.abc import Mapping
from pathlib import Path

from headstart.content.manifest import Descriptor, Index, Manifest, read_manifest
from headstart.convert.places.naming import Place
from headstart.convert.places.opening import open_source, open_target
from headstart.convert.places.place import Document, Source, Target
from headstart.registry.upstream import Credentials, Deadlines, Upstream
from tests.parts.registry import Registry
from tests.parts.token_server import TokenServer

PATIENT = Deadlines(first_byte=30.0)
"""A registry whose storage has just been started takes its time for the first blob."""


def upstream_of(registry: Registry, directory: Path) -> Upstream:
    """The configuration of an upstream that is ``registry``, with its account where it has one."""
    credentials = None
    if registry.account is not None:
        file = directory / "credentials"
        file.write_text(f"{registry.account}\n")
        credentials = Credentials(file=file)
    return Upstream(
        registry.host,
        registry.url,
        credentials=credentials,
        access="anonymous" if credentials is None else "shared",
        allow_private=True,
        deadlines=PATIENT,
        realm_hosts=("127.0.0.1",) if isinstance(registry.access, TokenServer) else (),
    )


async def copy(source: Place, target: Place, upstreams: Mapping[str, Upstream]) -> Document:
    """Copy an image whole, indexes too; gives its root."""
    async with open_source(source, upstreams) as read, open_target(target, upstreams) as written:
        root = await read.root()
        await copy_below(read, written, root)
        await written.commit(root)
        return root


async def copy_below(source: Source, target: Target, document: Document) -> None:
    """Copy what a document names."""
    read = read_manifest(document.body, document.media_type)
    if isinstance(read, Index):
        for descriptor in read.manifests:
            manifest = await source.manifest(descriptor)
            await copy_below(source, target, manifest)
            await target.put_manifest(manifest)
        return
    for descriptor in blobs_of(read):
        await target.put_blob(source.blob(descriptor))


def blobs_of(manifest: Manifest) -> list[Descriptor]:
    """Configuration and layers."""
    return [*([manifest.config] if manifest.config else []), *manifest.layers]
