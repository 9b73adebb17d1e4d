"""Layers for tests of the snapshotter: directories instead of images, opened and failed by hand."""

import asyncio
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from headstart.content.config import chain_ids
from headstart.content.digest import Digest
from headstart.store.known_layer import KnownChain, KnownLayer
from mount.snapshotter.errors import LayerUnavailable


def layers_of(name: str, count: int = 3, *, repository: str = "team/app") -> tuple[KnownLayer, ...]:
    """Layers of an image that nobody has to have made."""

    def digest(text: str) -> Digest:
        return Digest("sha256", hashlib.sha256(text.encode()).hexdigest())

    return tuple(
        KnownLayer(
            "registry.example",
            repository,
            digest(f"blob {name} {number}"),
            1000 + number,
            digest(f"tar {name} {number}"),
            "application/vnd.oci.image.layer.v1.tar+gzip",
            {"number": str(number)},
        )
        for number in range(count)
    )


def chain_of(layers: Sequence[KnownLayer], position: int) -> Digest:
    """The chain ID that ends with a layer."""
    return chain_ids([layer.diff_id for layer in layers[: position + 1]])[-1]


class ScriptedLayers:
    """The port ``Layers``: everything is mountable and verified unless it was held or failed."""

    def __init__(self, directory: Path) -> None:
        """``directory`` takes the layers' directories."""
        self._directory = directory
        self._chains: dict[Digest, KnownChain] = {}
        self._gates: dict[tuple[str, Digest], asyncio.Event] = {}
        self._failures: dict[tuple[str, Digest], LayerUnavailable] = {}
        self._numbers: dict[Digest, int] = {}
        self._changed = asyncio.Condition()
        self.silent = False
        """No answer to ``known``."""
        self.asked: list[tuple[Digest, Digest | None, str | None]] = []
        self.begun: list[KnownChain] = []
        self.waiting: set[tuple[str, Digest]] = set()
        self.mounts: list[Digest] = []
        """In the order in which they were asked for."""
        self.unmounted: list[Digest] = []
        self.adopted: list[Digest] = []

    # --- what a test says ---

    def add(self, layers: Sequence[KnownLayer]) -> None:
        """The mirror has seen this image."""
        for position in range(len(layers)):
            self._chains[chain_of(layers, position)] = KnownChain(tuple(layers), position)

    def add_answer(self, chain: Digest, known: KnownChain) -> None:
        """What is answered for a chain ID, be it right or not."""
        self._chains[chain] = known

    def hold(self, step: str, layer: KnownLayer) -> asyncio.Event:
        """A step waits until the event is set.

        ``mountable``, ``mounted``, ``unmount``, ``verified``, ``verified urgently``.
        """
        return self._gates.setdefault((step, layer.digest), asyncio.Event())

    def fail(self, step: str, layer: KnownLayer, error: LayerUnavailable) -> None:
        """A step raises from now on."""
        self._failures[step, layer.digest] = error

    def recover(self, step: str, layer: KnownLayer) -> None:
        """A step does not raise any more."""
        del self._failures[step, layer.digest]

    async def reached(self, step: str, layer: KnownLayer) -> None:
        """Wait until somebody waits in a step."""
        async with self._changed:
            await self._changed.wait_for(lambda: (step, layer.digest) in self.waiting)

    def path(self, layer: KnownLayer) -> Path:
        """The directory of a layer."""
        number = self._numbers.setdefault(layer.digest, len(self._numbers) + 1)
        return self._directory / str(number)

    # --- what the snapshotter asks ---

    async def known(
        self, chain: Digest, *, manifest: Digest | None, image_ref: str | None
    ) -> KnownChain | None:
        self.asked.append((chain, manifest, image_ref))
        if self.silent:
            await asyncio.Event().wait()
        return self._chains.get(chain)

    def begin(self, chain: KnownChain) -> None:
        self.begun.append(chain)

    async def mountable(self, layer: KnownLayer) -> None:
        await self._step("mountable", layer)

    async def verified(self, layer: KnownLayer, *, urgent: bool) -> None:
        await self._step("verified urgently" if urgent else "verified", layer)

    async def mounted(self, layer: KnownLayer) -> Path:
        self.mounts.append(layer.digest)
        await self._step("mounted", layer)
        path = self.path(layer)
        path.mkdir(parents=True, exist_ok=True)
        return path

    async def unmount(self, layer: KnownLayer) -> None:
        await self._step("unmount", layer)
        self.unmounted.append(layer.digest)

    async def adopt(self, layers: Collection[KnownLayer]) -> None:
        self.adopted = [layer.digest for layer in layers]

    async def _step(self, step: str, layer: KnownLayer) -> None:
        place = step, layer.digest
        gate = self._gates.get(place)
        if gate is not None:
            self.waiting.add(place)
            async with self._changed:
                self._changed.notify_all()
            try:
                await gate.wait()
            finally:
                self.waiting.discard(place)
        if place in self._failures:
            raise self._failures[place]
