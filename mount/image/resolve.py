"""From an image's name to its layers, by way of index, manifest and configuration."""

from collections.abc import Mapping
from dataclasses import dataclass

from headstart.content.config import MOST_BYTES, read_diff_ids
from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import (
    ACCEPT,
    Descriptor,
    Index,
    Manifest,
    Platform,
    read_manifest,
)
from headstart.content.reference import ImageReference
from headstart.registry.client import RegistryClient
from headstart.registry.upstream import Upstream
from headstart.store.known_layer import KnownLayer, known_layers
from mount.image.errors import ImageUnusable

_MOST_INDEXES = 2
"""An index may name indexes; no deeper."""


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """The image of one platform; ``layers`` with the base first, ``manifest`` its digest."""

    image: ImageReference
    manifest: Digest
    layers: tuple[KnownLayer, ...]

    @property
    def size(self) -> int:
        """Bytes of all layers as the registry has them, each once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())


async def resolve_image(
    image: ImageReference, upstreams: Mapping[str, Upstream], platform: Platform
) -> ResolvedImage:
    """Ask the image's registry. Raises ImageUnusable, RegistryError."""
    upstream = upstreams.get(image.registry)
    if upstream is None:
        raise ImageUnusable(
            f"{image}: {image.registry} is not among the upstreams; name an image of "
            f"{', '.join(upstreams)} or add it to upstreams in the configuration"
        )
    client = RegistryClient(upstream)
    try:
        digest, manifest = await _find_manifest(client, image, platform)
        if manifest.config is None or not manifest.layers:
            raise ImageUnusable(f"{image}: {digest} has no layers; it is no image to be mounted")
        diff_ids = read_diff_ids(await _read_config(client, image, manifest.config))
    except InvalidInput as error:
        raise ImageUnusable(f"{image}: {error}") from error
    finally:
        await client.aclose()
    layers = known_layers(image.registry, image.repository, digest, manifest, diff_ids)
    if not layers:
        raise ImageUnusable(
            f"{image}: {digest} has {len(manifest.layers)} layers and {len(diff_ids)} diff IDs; "
            "it is no image to be mounted"
        )
    for layer in manifest.layers:
        if layer.foreign:
            raise ImageUnusable(
                f"{image}: layer {layer.digest} is kept outside of its registry (urls), from where "
                "nothing is fetched"
            )
    return ResolvedImage(image, digest, layers)


async def _find_manifest(
    client: RegistryClient, image: ImageReference, platform: Platform
) -> tuple[Digest, Manifest]:
    reference = image.reference
    for _ in range(_MOST_INDEXES + 1):
        answer = await client.get_manifest(image.repository, reference, ACCEPT)
        document = read_manifest(answer.body, answer.media_type)
        if isinstance(document, Manifest):
            return answer.digest, document
        reference = str(_select(image, document, platform).digest)
    raise ImageUnusable(f"{image}: indexes are nested more than {_MOST_INDEXES} deep")


def _select(image: ImageReference, index: Index, platform: Platform) -> Descriptor:
    entry = index.select(platform)
    if entry is None:
        offered = {str(entry.platform) for entry in index.manifests if entry.platform}
        raise ImageUnusable(
            f"{image} is not there for {platform}; "
            f"--platform may be {', '.join(sorted(offered)) or 'none that it names'}"
        )
    return entry


async def _read_config(client: RegistryClient, image: ImageReference, config: Descriptor) -> bytes:
    if config.size > MOST_BYTES:
        raise ImageUnusable(f"{image}: its configuration has {config.size} bytes")
    body = bytearray()
    async with client.stream_blob(image.repository, config.digest, 0) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > config.size:
                break
    right = Digest.of(bytes(body), config.digest.algorithm) == config.digest
    if not right or len(body) != config.size:
        raise ImageUnusable(f"{image}: the bytes of its configuration are not {config.digest}")
    return bytes(body)
