"""Images that are to start from the mount: which layer images they need, and what cannot be one."""

import asyncio

from headstart.content.config import MOST_BYTES, read_diff_ids
from headstart.content.errors import InvalidInput
from headstart.store.errors import FillFailed
from headstart.store.fill_client import FillClient
from headstart.store.known_layer import KnownLayer, image_message, known_layers
from proxy.warm.job import SKIPPED, WAITING, WarmBlob, WarmImage, WarmJob
from proxy.warm.together import each
from proxy.warm.whole import make_layer, whole_blob

CONFIGS_AT_ONCE = 64

UNMOUNTABLE = ("refused", "digest")
"""Codes of what cannot be a layer image: known before, or found when its tar was read. An ordinary
pull of the layer may do all the same; whether its bytes are wrong the blob's own digest says."""


async def learn_layers(job: WarmJob, filler: FillClient) -> None:
    """Bring the configurations, and note at each blob which layer images are to be made of it.

    The filler is told of every image, as when it is pulled: the snapshotter then knows its chain
    IDs. Raises FillFailed or FillerUnreachable.
    """
    images: dict[WarmBlob, list[WarmImage]] = {}
    for image in job.images:
        if not image.manifest.layers:
            continue
        if image.manifest.config is None or image.blobs[0].state == SKIPPED:
            _note_artefact(job, image, "its registry has no configuration of it")
        else:
            images.setdefault(image.blobs[0], []).append(image)

    async def learn(config: WarmBlob) -> None:
        await _learn(job, config, images[config], filler)

    await each(learn, images, CONFIGS_AT_ONCE)


async def _learn(
    job: WarmJob, config: WarmBlob, images: list[WarmImage], filler: FillClient
) -> None:
    async with whole_blob(job, config, filler) as blob:
        body = b""
        if blob.size <= MOST_BYTES:
            body = await asyncio.to_thread(blob.read, 0, blob.size)
    try:
        diff_ids = read_diff_ids(body)
    except InvalidInput:
        for image in images:
            _note_artefact(job, image, "its configuration names no diff IDs")
        return
    for image in images:
        place = image.reference
        layers = known_layers(
            place.registry, place.repository, image.digest, image.manifest, diff_ids
        )
        if layers:
            await _expect(job, image, layers, filler)
        else:
            count = len(image.manifest.layers)
            _note_artefact(job, image, f"it has {count} layers and {len(diff_ids)} diff IDs")


def _note_artefact(job: WarmJob, image: WarmImage, reason: str) -> None:
    job.note(f"{image.reference}: its layers cannot be mounted and are brought as blobs: {reason}")


async def _expect(
    job: WarmJob, image: WarmImage, layers: tuple[KnownLayer, ...], filler: FillClient
) -> None:
    try:
        await filler.call(image_message(image.digest, layers))
    except FillFailed as failure:
        job.note(f"{image.reference}: the mount does not know it before its pull: {failure.text}")
    blobs = {blob.descriptor.digest: blob for blob in image.blobs}
    for layer in layers:
        blob = blobs[layer.digest]
        if blob.state != SKIPPED and layer not in blob.layers:
            blob.layers.append(layer)


async def make_layers(job: WarmJob, blob: WarmBlob, filler: FillClient) -> bool:
    """Make the layer images of a blob; whether it is done with that.

    One after the other: where images differ about a layer, the filler refuses all but the one that
    is open, and lets the right one in when a wrong one has failed. Raises FillFailed or
    FillerUnreachable.
    """
    all_made = bool(blob.layers)
    for layer in blob.layers:
        try:
            await make_layer(job, blob, layer, filler)
        except FillFailed as failure:
            if failure.code not in UNMOUNTABLE:
                raise
            all_made = False
            blob.state = WAITING
            reason = failure.text.removeprefix(f"{layer.digest}: ")
            job.note(f"{layer.digest}: cannot be mounted and is brought as a blob: {reason}")
    return all_made
