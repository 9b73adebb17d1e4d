"""A mirror of a scripted registry that has a few images, as one node has it."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from headstart.content.digest import Digest
from tests.control.calls import Caller
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.parts.mirror import Mirror

HOST = "registry.example"
MIB = 1024 * 1024


def add_image(upstream: ScriptedUpstream, repository: str, tag: str, *sizes: int) -> list[str]:
    """An image with layers of random bytes; the digests of its config and layers."""
    noise = random.Random(f"{repository}:{tag}")
    config = b"{}" + f"{repository}:{tag}".encode()
    contents = [config, *(noise.randbytes(size) for size in sizes)]
    digests = [upstream.add_blob(repository, content) for content in contents]
    kinds = ["application/vnd.oci.image.config.v1+json"]
    kinds += ["application/vnd.oci.image.layer.v1.tar+gzip"] * len(sizes)
    descriptors = [
        {"mediaType": kind, "digest": digest, "size": len(content)}
        for kind, digest, content in zip(kinds, digests, contents, strict=True)
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptors[0],
        "layers": descriptors[1:],
    }
    upstream.add_manifest(repository, json.dumps(manifest).encode(), tags=[tag])
    assert all(Digest.parse(digest) for digest in digests)
    return digests


@dataclass
class Node:
    """What a test of control calls has."""

    upstream: ScriptedUpstream
    mirror: Mirror

    @property
    def caller(self) -> Caller:
        """Somebody on this machine."""
        return Caller(("127.0.0.1", self.mirror.port))

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.mirror.stripes[0] / "run" / "control.sock"

    def log(self) -> str:
        """What the mirror's processes have logged."""
        return self.mirror.log.read_text()
