"""Whole layer images, made by the real filler of an image's blobs."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from bench.image_registry import REPOSITORY, ImageRegistry
from bench.llm_image import LlmImage
from headstart.content.digest import Digest
from headstart.store.fill_client import FillClient
from headstart.store.geometry import Geometry
from headstart.store.known_layer import KnownLayer
from headstart.store.layout import Layout
from tests.parts.mirror import Mirror, upstream_at

FILL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class LayerImage:
    """A layer image in the cache: metadata, and the data device's file of each stripe."""

    layer: KnownLayer
    meta: Path
    devices: tuple[Path, ...]
    geometry: Geometry


@contextmanager
def made_by_filler(
    directory: Path, image: LlmImage, tag: str
) -> Iterator[tuple[Path, Sequence[LayerImage]]]:
    """``fill.sock`` and the layer images, the base first; the filler runs while the block lasts.

    Raises FillFailed, FillerUnreachable, TimeoutError.
    """
    with ExitStack() as stack:
        registry = stack.enter_context(ImageRegistry(directory / "registry", image))
        upstreams = {registry.host: upstream_at(registry.url)}
        mirror = stack.enter_context(Mirror(directory / "mirror", upstreams))
        fill_socket = Layout(mirror.stripes).fill_socket
        layers = _layers(image, tag, registry.host)

        async def fill() -> list[LayerImage]:
            async with FillClient(fill_socket, "command") as client:
                with anyio.fail_after(FILL_SECONDS):
                    return [await _whole(client, layer) for layer in layers]

        yield fill_socket, anyio.run(fill)


async def _whole(client: FillClient, layer: KnownLayer) -> LayerImage:
    opened = await client.open_layer(layer)
    await opened.wait_complete()
    return LayerImage(layer, opened.meta, tuple(opened.devices), opened.cached.geometry)


def _layers(image: LlmImage, tag: str, upstream: str) -> list[KnownLayer]:
    """As the mirror would know them."""
    manifest = json.loads((image.directory / "manifests" / image.tags[tag]).read_bytes())
    config = json.loads((image.directory / "blobs" / manifest["config"]["digest"]).read_bytes())
    return [
        KnownLayer(
            upstream,
            REPOSITORY,
            Digest.parse(layer["digest"]),
            layer["size"],
            Digest.parse(diff_id),
            layer["mediaType"],
            layer["annotations"],
            position,
        )
        for position, (layer, diff_id) in enumerate(
            zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        )
    ]
