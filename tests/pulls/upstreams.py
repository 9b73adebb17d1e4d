"""A registry behind a face that counts, and the mirror whose upstream it is."""

from dataclasses import dataclass
from pathlib import Path

from tests.parts.clients import Client
from tests.parts.images import Image, push
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.nginx import Front
from tests.parts.ports import free_port
from tests.parts.registry import Registry
from tests.parts.token_server import TokenServer

HOST = "registry.example"
"""How image names call the registry; no name server knows it."""

AWAY = f"http://127.0.0.1:{free_port()}"
"""Nobody listens there: a client that falls back to it fails."""


@dataclass(frozen=True)
class Upstream:
    """A registry and the counting face in front of it, through which the mirror asks."""

    registry: Registry
    front: Front

    def configuration(self, directory: Path, **more: object) -> dict[str, object]:
        """What the mirror's configuration says of it; an account becomes the mirror's own."""
        keys = upstream_at(self.front.url, **more)
        if self.registry.account is not None:
            file = directory / "credentials"
            file.write_text(f"{self.registry.account}\n")
            file.chmod(0o600)
            keys |= {"access": "shared", "credentials": {"file": str(file)}}
        if isinstance(self.registry.access, TokenServer):
            # No name but an address: which domain it belongs to cannot be seen.
            keys["realm_hosts"] = ["127.0.0.1"]
        return keys

    def blobs_asked(self) -> list[str]:
        """Method and target of the requests for blobs since the last ``front.clear()``."""
        return [
            f"{access.method} {access.target}"
            for access in self.front.accesses()
            if "/blobs/" in access.target
        ]

    def start(self) -> None:
        """Switch registry and face on again."""
        self.registry.start()
        self.front.start()

    def stop(self) -> None:
        """Switch both off."""
        self.front.stop()
        self.registry.stop()


@dataclass(frozen=True)
class Mirrored:
    """An upstream and the mirror of it."""

    upstream: Upstream
    mirror: Mirror

    def push(self, image: Image, name: str) -> str:
        """Push to the registry itself; returns the reference by which clients pull it."""
        push(image, self.upstream.registry, name)
        return f"{HOST}/{name}"

    def lead(self, client: Client) -> None:
        """Have ``client`` pull from the mirror, in the way of its kind, and from nowhere else."""
        client.use_mirror(HOST, AWAY, mirror_url_for(client, self.mirror))


def mirror_url_for(client: Client, mirror: Mirror, host: str = HOST) -> str:
    """containerd names the registry in ``?ns=``; for the others it stands in the mirror's path."""
    return mirror.url if client.name == "ctr" else f"{mirror.url}/{host}"
