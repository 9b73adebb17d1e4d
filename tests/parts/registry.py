"""Debian's docker-registry, configured for one test.

``Registry(directory)`` is a plain one; ``access`` an :class:`Htpasswd` or a running TokenServer;
``storage`` a Bucket, whose blobs the registry answers with a redirect (307) to a signed URL;
``remote`` makes it a pull-through proxy of another registry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.doubles.certificates import ServerCertificate
from tests.parts.accounts import Account
from tests.parts.object_storage import Bucket
from tests.parts.processes import run
from tests.parts.server import TcpServer
from tests.parts.token_server import TokenServer


@dataclass(frozen=True, slots=True)
class Htpasswd:
    """Basic authentication for these accounts, for pulls too."""

    accounts: tuple[Account, ...]

    def write(self, file: Path) -> None:
        """Write the bcrypt lines, the only ones that docker-registry reads."""
        lines = (
            run(["htpasswd", "-nbBC", "5", account.username, account.password]).stdout.strip()
            for account in self.accounts
        )
        file.write_text("".join(f"{line}\n" for line in lines))


class Registry(TcpServer):
    """A docker-registry; ``account`` is one that may push to it, None where anybody may."""

    def __init__(
        self,
        directory: Path,
        *,
        access: Htpasswd | TokenServer | None = None,
        storage: Bucket | None = None,
        remote: str | None = None,
        remote_account: Account | None = None,
        tls: ServerCertificate | None = None,
    ) -> None:
        super().__init__(directory, "docker-registry", "http" if tls is None else "https")
        self.access = access
        self.tls = tls
        self._bucket = storage
        self._remote = remote
        self._remote_account = remote_account

    @property
    def account(self) -> Account | None:
        return self.access.accounts[0] if self.access and self.access.accounts else None

    def arguments(self) -> Sequence[str | Path]:
        configuration = self.directory / "registry.yml"
        configuration.write_text(yaml.safe_dump(self._configuration()))
        return ["docker-registry", "serve", configuration]

    def stored(self) -> Sequence[Path]:
        return [Path("storage")]

    def blob_file(self, digest: str) -> Path:
        """Where file system storage keeps a blob's bytes."""
        algorithm, _, encoded = digest.partition(":")
        blobs = self.directory / "storage/docker/registry/v2/blobs"
        return blobs / algorithm / encoded[:2] / encoded / "data"

    def layer_link(self, repository: str, digest: str) -> Path:
        """The file whose presence says that file system storage has a blob in a repository."""
        algorithm, _, encoded = digest.partition(":")
        repositories = self.directory / "storage/docker/registry/v2/repositories"
        return repositories / repository / "_layers" / algorithm / encoded / "link"

    def _configuration(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": self.host, "secret": "headstart"}
        if self.tls is not None:
            http["tls"] = {
                "certificate": str(self.tls.certificate),
                "key": str(self.tls.key),
            }
        configuration: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "warn", "formatter": "text"},
            "http": http,
            "storage": self._storage(),
        }
        if self._remote is not None:
            proxy = {"remoteurl": self._remote}
            if self._remote_account is not None:
                proxy["username"] = self._remote_account.username
                proxy["password"] = self._remote_account.password
            configuration["proxy"] = proxy
        if isinstance(self.access, Htpasswd):
            passwords = self.directory / "htpasswd"
            self.access.write(passwords)
            configuration["auth"] = {"htpasswd": {"realm": "headstart", "path": str(passwords)}}
        elif self.access is not None:
            configuration["auth"] = {
                "token": {
                    "realm": self.access.realm,
                    "service": self.access.service,
                    "issuer": self.access.issuer,
                    "rootcertbundle": str(self.access.certificate_file),
                }
            }
        return configuration

    def _storage(self) -> dict[str, object]:
        storage: dict[str, object] = {
            "delete": {"enabled": True},
            "cache": {"blobdescriptor": "inmemory"},
            "maintenance": {"uploadpurging": {"enabled": False}},
        }
        if self._bucket is None:
            storage["filesystem"] = {"rootdirectory": str(self.directory / "storage")}
            return storage
        storage["redirect"] = {"disable": False}
        storage["s3"] = {
            "region": self._bucket.region,
            "regionendpoint": self._bucket.endpoint,
            "bucket": self._bucket.name,
            "accesskey": self._bucket.access_key,
            "secretkey": self._bucket.secret_key,
            "rootdirectory": f"/{self._bucket.prefix}",
            "secure": False,
            "v4auth": True,
        }
        return storage
