"""A snapshotter in a process of its own, whose layers are directories that a test describes.

``python -m tests.snapshotter.snapshotter_process SOCKET ROOT LAYERS``: see :class:`LayerFiles`.
"""

import asyncio
import json
import logging
import socket as sockets
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from headstart.content.digest import Digest
from headstart.store.known_layer import KnownChain, KnownLayer
from mount.snapshotter.errors import LayerUnavailable
from mount.snapshotter.server import serve
from tests.parts.server import Server
from tests.snapshotter.layers_double import chain_of

_REPOSITORY = Path(__file__).parents[2]
_LOOKS_SECONDS = 0.02


class LayerFiles:
    """What a test and the port ``Layers`` in another process say to each other, as files.

    ``images.json``: all images, their layers with the directories that show them. A layer whose
    ``HEX.held`` exists waits (and shows ``HEX.waiting``), one with ``HEX.failed`` fails.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def add(self, layers: Sequence[KnownLayer], directories: Sequence[Path]) -> None:
        """The mirror has seen this image; to be said before its pull."""
        images = [*self._images(), [layer.as_message() for layer in layers]]
        places = self._places() | {
            layer.digest.hex: str(path) for layer, path in zip(layers, directories, strict=True)
        }
        (self.directory / "images.json").write_text(json.dumps(images))
        (self.directory / "places.json").write_text(json.dumps(places))

    def file(self, layer: KnownLayer, state: str) -> Path:
        """The file of a state of a layer: ``held``, ``waiting`` or ``failed``."""
        return self.directory / f"{layer.digest.hex}.{state}"

    def _images(self) -> list[list[object]]:
        file = self.directory / "images.json"
        found: list[list[object]] = json.loads(file.read_text()) if file.exists() else []
        return found

    def _places(self) -> dict[str, str]:
        file = self.directory / "places.json"
        found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        return found

    async def known(
        self, chain: Digest, *, manifest: Digest | None, image_ref: str | None
    ) -> KnownChain | None:
        for image in self._images():
            layers = tuple(map(KnownLayer.from_message, image))
            for position in range(len(layers)):
                if chain_of(layers, position) == chain:
                    return KnownChain(layers, position)
        return None

    def begin(self, chain: KnownChain) -> None:
        """Everything is here."""

    async def mountable(self, layer: KnownLayer) -> None:
        waiting = self.file(layer, "waiting")
        while self.file(layer, "held").exists():
            waiting.touch()
            await asyncio.sleep(_LOOKS_SECONDS)
        waiting.unlink(missing_ok=True)
        failed = self.file(layer, "failed")
        if failed.exists():
            raise LayerUnavailable(failed.read_text(), refused=True)

    async def verified(self, layer: KnownLayer, *, urgent: bool) -> None:
        await self.mountable(layer)

    async def mounted(self, layer: KnownLayer) -> Path:
        return Path(self._places()[layer.digest.hex])

    async def unmount(self, layer: KnownLayer) -> None:
        self.file(layer, "unmounted").touch()

    async def adopt(self, layers: Collection[KnownLayer]) -> None:
        """Nothing was mounted."""


class SnapshotterProcess(Server):
    """The above as a server; ``kill`` and ``start`` are a crash."""

    stop_grace = 20.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "snapshotter")
        self.layers = LayerFiles(directory / "layers")
        # sun_path ends at 108 bytes.
        self._run = Path(tempfile.mkdtemp(prefix="snapshotter-"))
        self.socket = self._run / "snapshotter.sock"
        self.root = directory / "root"
        self.told = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM)
        """What systemd would be told."""
        self.told.bind(str(self._run / "notify"))
        self.told.settimeout(20)

    def arguments(self) -> Sequence[str | Path]:
        module = "tests.snapshotter.snapshotter_process"
        places = [self.socket, self.root, self.layers.directory]
        return [sys.executable, "-m", module, *places]

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(_REPOSITORY), "NOTIFY_SOCKET": str(self._run / "notify")}

    def ready(self) -> bool:
        with sockets.socket(sockets.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stored(self) -> Sequence[Path]:
        return [self._run, self.root]

    def kill(self) -> None:
        """SIGKILL."""
        self.running.kill()
        self.process = None

    def __exit__(self, *details: object) -> None:
        self.told.close()
        super().__exit__(None, None, None)


def main() -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    socket, root, layers = map(Path, sys.argv[1:])
    asyncio.run(serve(socket, root, LayerFiles(layers), ["*"]))


if __name__ == "__main__":
    main()
