"""Who may have a layer image that another one has open, and that nobody waits for ever."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.store.errors import FillFailed
from headstart.store.index import Index
from headstart.store.known_layer import KnownLayer
from proxy.fill.filler import Filler
from proxy.fill.layers.layers import Layers
from proxy.fill.layers.making import Making
from proxy.fill.layers.settings import LayerSettings
from tests.fill.test_filler import HOST, run_filler
from tests.snapshotter.layers_double import layers_of

KNOWN = replace(layers_of("app", 1)[0], upstream=HOST)
DOCKER = replace(KNOWN, media_type="application/vnd.docker.image.rootfs.diff.tar.gzip")


@pytest.fixture(autouse=True)
def _nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Making, "enqueue", lambda making, layer: None)


def run_layers(directory: Path, work: Callable[[Layers], Awaitable[None]]) -> None:
    """Run ``work`` beside layers that nobody works on."""

    async def run(filler: Filler) -> None:
        index = Index(filler.layout.index)
        layers = Layers(filler, index, LayerSettings("auto", 96 << 20, 8, 32 << 20))
        try:
            await work(layers)
        finally:
            await layers.close()
            index.close()

    run_filler(directory, run)


async def opened(layers: Layers, known: KnownLayer) -> str:
    """``open``, or the code of the failure."""
    try:
        async with asyncio.timeout(5):
            await layers.open(known)
    except FillFailed as failure:
        return failure.code
    return "open"


@pytest.mark.parametrize(
    "other", [DOCKER, replace(KNOWN, annotations={"title": "the same"}), replace(KNOWN, position=1)]
)
def test_what_another_image_says_of_a_blob_is_no_fault_of_its_content(
    tmp_path: Path, other: KnownLayer
) -> None:
    async def work(layers: Layers) -> None:
        layer = await layers.open(KNOWN)
        assert await opened(layers, KNOWN) == "open"
        # Neither of "refused" and "digest": those are remembered for days.
        assert await opened(layers, other) == "upstream"
        layer.state = "complete"
        layer.vouched.add(HOST)
        assert await opened(layers, other) == "open"

    run_layers(tmp_path, work)


def test_another_diff_id_is_refused_however_far_the_layer_is(tmp_path: Path) -> None:
    async def work(layers: Layers) -> None:
        layer = await layers.open(KNOWN)
        other = replace(KNOWN, diff_id=KNOWN.digest)
        assert await opened(layers, other) == "refused"
        layer.state = "complete"
        assert await opened(layers, other) == "refused"

    run_layers(tmp_path, work)
