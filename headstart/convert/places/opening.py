"""From a place's name to the source or target there."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from headstart.content.reference import ImageReference
from headstart.convert.errors import PlaceUnusable
from headstart.convert.places.archive_source import ArchiveSource
from headstart.convert.places.archive_target import ArchiveTarget
from headstart.convert.places.layout import LayoutSource, LayoutTarget
from headstart.convert.places.naming import ArchivePlace, LayoutPlace, Place
from headstart.convert.places.place import Source, Target
from headstart.convert.places.registry import RegistrySource, RegistryTarget
from headstart.registry.client import RegistryClient
from headstart.registry.pushing import RegistryPusher
from headstart.registry.upstream import Upstream


@asynccontextmanager
async def open_source(place: Place, upstreams: Mapping[str, Upstream]) -> AsyncIterator[Source]:
    """What is read at ``place``; ``upstreams`` are the registries that may be asked, by host."""
    if isinstance(place, LayoutPlace):
        yield LayoutSource(place)
    elif isinstance(place, ArchivePlace):
        archive = ArchiveSource(place)
        try:
            yield archive
        finally:
            archive.close()
    else:
        client = RegistryClient(_upstream(place.image, upstreams))
        try:
            yield RegistrySource(client, place.image)
        finally:
            await client.aclose()


@asynccontextmanager
async def open_target(place: Place, upstreams: Mapping[str, Upstream]) -> AsyncIterator[Target]:
    """What is written at ``place``; without a commit nothing there has the place's name."""
    if isinstance(place, LayoutPlace):
        yield LayoutTarget(place)
    elif isinstance(place, ArchivePlace):
        archive = ArchiveTarget(place)
        try:
            yield archive
        finally:
            archive.close()
    else:
        pusher = RegistryPusher(_upstream(place.image, upstreams))
        try:
            yield RegistryTarget(pusher, place.image)
        finally:
            await pusher.aclose()


def _upstream(image: ImageReference, upstreams: Mapping[str, Upstream]) -> Upstream:
    upstream = upstreams.get(image.registry)
    if upstream is None:
        raise PlaceUnusable(
            image,
            f"is not reached: {image.registry} is not among the upstreams",
            f"name an image of {', '.join(upstreams)} or add it to upstreams in the configuration",
        )
    return upstream
