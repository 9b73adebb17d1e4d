"""Names and types that the fixtures of conftest.py and the tests share."""

from typing import Protocol

from tests.doubles.certificates import ServerCertificate
from tests.parts.accounts import Account
from tests.parts.clients import Buildah, Client, Ctr, Podman, Skopeo
from tests.parts.layers import Content, Layer
from tests.parts.registry import Registry

ACCOUNT = Account("alice", "wonderland")
REGISTRY_KINDS = ("plain", "htpasswd", "token", "s3")
CLIENTS: dict[str, type[Skopeo | Podman | Buildah | Ctr]] = {
    "ctr": Ctr,
    "skopeo": Skopeo,
    "podman": Podman,
    "buildah": Buildah,
}
LAYERS = (
    Layer(3 << 20),
    Layer(2 << 20, Content.TEXT),
    Layer((1 << 20) + 77, Content.SPARSE, compressed=False),
)
"""Of the small images: incompressible, compressible, and a plain tar."""


class MakeRegistry(Protocol):
    """Start a docker-registry of a kind; it ends with the test."""

    def __call__(
        self,
        kind: str = "plain",
        *,
        remote: Registry | None = None,
        tls: ServerCertificate | None = None,
        token_lifetime: float = 300.0,
    ) -> Registry: ...


class MakeClient(Protocol):
    """A client by its name; what it pulled is removed with the test."""

    def __call__(self, name: str) -> Client: ...
