"""A private containerd whose snapshots, those of CRI too, are ours."""

from collections.abc import Sequence
from pathlib import Path

import grpc

from tests.parts.containerd import Containerd, write_hosts_toml
from tests.parts.registry import Registry

_DISABLED = ("aufs", "btrfs", "devmapper", "zfs")


class HeadstartContainerd(Containerd):
    """containerd with CRI and the plugin ``headstart``."""

    def __init__(self, directory: Path, plugin: Path) -> None:
        """``plugin`` is the snapshotter's socket."""
        super().__init__(directory)
        self._plugin = plugin
        self.hosts = directory / "hosts"
        self.hosts.mkdir()
        self.sandbox_image: str | None = None
        """What CRI runs in each pod beside its containers; containerd's own unless given."""
        self.annotations = False
        """Whether CRI says in labels which image a layer is of; in force from the next start."""

    def arguments(self) -> Sequence[str | Path]:
        configuration = self.directory / "containerd.toml"
        disabled = [f"io.containerd.snapshotter.v1.{name}" for name in _DISABLED]
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        sandbox = f'sandbox_image = "{self.sandbox_image}"' if self.sandbox_image else ""
        annotations = "" if not self.annotations else "disable_snapshot_annotations = false"
        configuration.write_text(
            f"""
version = 2
root = "{self._root}"
state = "{self._state / "state"}"
disabled_plugins = {[*disabled, "io.containerd.internal.v1.opt"]}
[grpc]
address = "{self.address}"
[proxy_plugins.headstart]
type = "snapshot"
address = "{self._plugin}"
[{cri}]
restrict_oom_score_adj = true
stream_server_port = "0"
{sandbox}
[{cri}.cni]
bin_dir = "{self.directory}"
conf_dir = "{self.directory / "cni"}"
[{cri}.containerd]
snapshotter = "headstart"
{annotations}
[{cri}.registry]
config_path = "{self.hosts}"
"""
        )
        return ["containerd", "--config", configuration]

    def use(self, registry: Registry) -> None:
        """Images of this registry can be pulled, also by CRI."""
        write_hosts_toml(self.hosts, registry.host, registry.url, registry.url)

    def pull(self, reference: str) -> None:
        """Pull as ctr does: everything is downloaded, then unpacked."""
        self.ctr(
            ["images", "pull", "--snapshotter", "headstart", "--hosts-dir", self.hosts, reference],
            deadline=60,
        )

    def run(self, reference: str, name: str, *arguments: str, namespace: str = "default") -> str:
        """Run a container to its end; what it printed."""
        options = ["--rm", "--net-host", "--snapshotter", "headstart"]
        command = ["-n", namespace, "run", *options, reference, name, "/bin/show", *arguments]
        return self.ctr(command, deadline=60)

    def cri_pull(self, reference: str, deadline: float = 60.0) -> None:
        """PullImage; grpc.RpcError where it fails."""
        self._image_service("PullImage", _field(1, _field(1, reference.encode())), deadline)

    def cri_remove(self, reference: str) -> None:
        """RemoveImage."""
        self._image_service("RemoveImage", _field(1, _field(1, reference.encode())), 30.0)

    def _image_service(self, method: str, request: bytes, deadline: float) -> None:
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            channel.unary_unary(f"/runtime.v1.ImageService/{method}")(request, timeout=deadline)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a message (Protocol Buffers, "Encoding")."""
    length = len(content)
    size = bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content
