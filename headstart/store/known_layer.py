"""What the filler knows of a layer when somebody names its chain ID."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.manifest import Manifest
from headstart.store.wire import Message, WireError


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """One layer of an image that the mirror has seen, and where its blob can be had.

    ``digest`` and ``size`` (bytes) are of the blob as stored, ``diff_id`` is of the tar inside;
    ``annotations`` are those of the layer's descriptor. ``position`` is its place in the image:
    the base's is 0. ``manifest`` is of the image, where that is known; it makes no other layer.
    """

    upstream: str
    repository: str
    digest: Digest
    size: int
    diff_id: Digest
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    position: int = 0
    manifest: Digest | None = field(default=None, compare=False)

    def as_message(self) -> Message:
        """As it is written in messages and records."""
        return {
            "upstream": self.upstream,
            "repository": self.repository,
            "digest": str(self.digest),
            "size": self.size,
            "diff_id": str(self.diff_id),
            "media_type": self.media_type,
            "annotations": dict(self.annotations),
            "position": self.position,
            **({} if self.manifest is None else {"manifest": str(self.manifest)}),
        }

    @classmethod
    def from_message(cls, message: object) -> "KnownLayer":
        """What :meth:`as_message` has written. Raises WireError."""
        if not isinstance(message, dict):
            raise WireError("a layer must be an object")
        texts = [message.get(name) for name in ("upstream", "repository", "media_type")]
        size, annotations = message.get("size"), message.get("annotations")
        position = message.get("position")
        if (
            not all(isinstance(text, str) for text in texts)
            or type(size) is not int
            or size < 0
            or not isinstance(annotations, dict)
            or type(position) is not int
        ):
            raise WireError("a layer without repository, media type, size, annotations or position")
        try:
            digest = Digest.parse(str(message.get("digest")))
            diff_id = Digest.parse(str(message.get("diff_id")))
            manifest = Digest.parse(str(message["manifest"])) if "manifest" in message else None
        except InvalidInput as error:
            raise WireError(str(error)) from None
        named = {str(name): str(text) for name, text in annotations.items()}
        upstream, repository, media_type = map(str, texts)
        return cls(
            upstream, repository, digest, size, diff_id, media_type, named, position, manifest
        )


def known_layers(
    upstream: str,
    repository: str,
    digest: Digest,
    manifest: Manifest,
    diff_ids: Sequence[Digest],
) -> tuple[KnownLayer, ...]:
    """The layers of an image, the base first; ``diff_ids`` are those of its configuration.

    ``digest`` is the manifest's.

    Empty unless each layer has one: then the layers make no root file system.
    """
    if len(diff_ids) != len(manifest.layers):
        return ()
    return tuple(
        KnownLayer(
            upstream,
            repository,
            layer.digest,
            layer.size,
            diff_id,
            layer.media_type,
            layer.annotations,
            position,
            digest,
        )
        for position, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True))
    )


def image_message(manifest: Digest, layers: Sequence[KnownLayer]) -> Message:
    """What tells the filler of an image, so that it knows what its chain IDs stand for."""
    return {
        "type": "image",
        "manifest": str(manifest),
        "layers": [layer.as_message() for layer in layers],
    }


@dataclass(frozen=True, slots=True)
class KnownChain:
    """The answer to a chain ID: the image that it was last seen in, and which of its layers."""

    layers: tuple[KnownLayer, ...]
    """All layers of that image, the base first: they are wanted together."""
    position: int

    @property
    def layer(self) -> KnownLayer:
        """The layer that the chain ID ends with."""
        return self.layers[self.position]

    def as_message(self) -> Message:
        """As it is written in messages and records."""
        return {
            "layers": [layer.as_message() for layer in self.layers],
            "position": self.position,
        }

    @classmethod
    def from_message(cls, message: Message) -> "KnownChain":
        """What :meth:`as_message` has written. Raises WireError."""
        listed, position = message.get("layers"), message.get("position")
        if not isinstance(listed, list) or type(position) is not int:
            raise WireError("a chain without layers and position")
        if not 0 <= position < len(listed):
            raise WireError(f"a chain of {len(listed)} layers with position {position}")
        return cls(tuple(map(KnownLayer.from_message, listed)), position)
