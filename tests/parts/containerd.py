"""A private containerd: own root, state, socket and snapshots."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.parts.processes import ProcessFailed, run
from tests.parts.server import Server


def write_hosts_toml(
    directory: Path, upstream_host: str, mirror_url: str | None, server_url: str
) -> Path:
    """Write ``directory/UPSTREAM_HOST/hosts.toml``; returns it.

    The mirror is asked first, with ``?ns=UPSTREAM_HOST``, then ``server_url``; nothing but pulls
    goes to the mirror.
    """
    file = directory / upstream_host / "hosts.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    # Keys before the first table are those of the server.
    lines = [f'server = "{server_url}"', "skip_verify = true"]
    if mirror_url is not None:
        lines.append(f'[host."{mirror_url}"]')
        lines.append('  capabilities = ["pull", "resolve"]')
        lines.append("  skip_verify = true")
    file.write_text("\n".join([*lines, ""]))
    return file


class Containerd(Server):
    """A containerd without CRI; ``ctr`` talks to it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "containerd")
        self._root = directory / "root"
        # sun_path ends at 108 bytes, pytest's directories do not.
        self._state = Path(tempfile.mkdtemp(prefix="containerd-"))
        self.address = self._state / "containerd.sock"
        self.content = self._root / "io.containerd.content.v1.content/blobs/sha256"
        """The directory of its blobs, named by their hex digests."""

    def arguments(self) -> Sequence[str | Path]:
        configuration = self.directory / "containerd.toml"
        disabled = ["cri", "aufs", "btrfs", "devmapper", "zfs", "opt"]
        kinds = {"cri": "grpc", "opt": "internal"}
        names = [f"io.containerd.{kinds.get(name, 'snapshotter')}.v1.{name}" for name in disabled]
        configuration.write_text(
            "version = 2\n"
            f'root = "{self._root}"\n'
            f'state = "{self._state / "state"}"\n'
            f"disabled_plugins = {names}\n"
            "[grpc]\n"
            f'address = "{self.address}"\n'
        )
        return ["containerd", "--config", configuration]

    def ready(self) -> bool:
        if not self.address.exists():
            return False
        try:
            self.ctr(["version"])
        except ProcessFailed:
            return False
        return True

    def stored(self) -> Sequence[Path]:
        return [self._root, self._state]

    def ctr(self, arguments: Sequence[str | Path], deadline: float = 20.0) -> str:
        """Run ``ctr`` with these arguments; returns what it printed."""
        return run(["ctr", "--address", self.address, *arguments], deadline=deadline).stdout

    def wipe(self) -> None:
        """Forget images, blobs, snapshots and what was half fetched."""
        self.stop()
        shutil.rmtree(self._root)
        self.start()
