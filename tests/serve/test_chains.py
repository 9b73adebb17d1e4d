"""The filler hears which layers an image has before its client has the configuration."""

import json
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.content.manifest import OCI_INDEX, OCI_MANIFEST
from headstart.store.wire import Message
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.serve.running_server import Client
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import Serving, get, keys_of, whole_blob

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DIFF_IDS = [str(Digest.of(b"base")), str(Digest.of(b"code"))]
LAYERS: list[dict[str, Any]] = [
    {"mediaType": LAYER, "digest": str(Digest.of(b"1")), "size": 11, "annotations": {"a": "b"}},
    {"mediaType": LAYER, "digest": str(Digest.of(b"2")), "size": 22},
]


def config_of(diff_ids: object) -> bytes:
    return json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()


def manifest_of(config: str, size: int, layers: list[dict[str, Any]]) -> bytes:
    descriptor = {"mediaType": "application/x", "digest": config, "size": size}
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor,
            "layers": layers,
        }
    ).encode()


def images(filler: ScriptedFiller) -> list[Message]:
    return filler.messages("image")


def pull_manifest(client: Client, digest: str) -> None:
    client.ask(f"/v2/team/app/manifests/{digest}", "GET", f"Accept: {OCI_MANIFEST}, {OCI_INDEX}")
    assert client.response().status == 200


def test_an_image_is_told_before_the_last_byte_of_its_configuration_leaves(
    filler: ScriptedFiller, upstream: ScriptedUpstream, client: Client
) -> None:
    body = config_of(DIFF_IDS)
    config = whole_blob(filler, body)
    manifest = upstream.add_manifest("team/app", manifest_of(config, len(body), LAYERS))
    pull_manifest(client, manifest)
    assert images(filler) == []
    assert get(client, config).body == body
    (told,) = images(filler)
    assert told["manifest"] == manifest
    place = {
        "upstream": upstream.host,
        "repository": "team/app",
        "media_type": LAYER,
        "manifest": manifest,
    }
    assert told["layers"] == [
        {
            **place,
            "digest": LAYERS[0]["digest"],
            "size": 11,
            "diff_id": DIFF_IDS[0],
            "annotations": {"a": "b"},
            "position": 0,
        },
        {
            **place,
            "digest": LAYERS[1]["digest"],
            "size": 22,
            "diff_id": DIFF_IDS[1],
            "annotations": {},
            "position": 1,
        },
    ]


def test_an_image_is_told_once_for_each_time_its_manifest_is_served(
    filler: ScriptedFiller, upstream: ScriptedUpstream, client: Client
) -> None:
    body = config_of(DIFF_IDS)
    config = whole_blob(filler, body)
    manifest = upstream.add_manifest("team/app", manifest_of(config, len(body), LAYERS))
    for times in (1, 2):
        pull_manifest(client, manifest)
        get(client, config)
        get(client, config)
        assert len(images(filler)) == times


@pytest.mark.parametrize("diff_ids", [DIFF_IDS[:1], [], "none", [*DIFF_IDS, DIFF_IDS[0]]])
def test_what_is_no_image_is_served_and_not_told(
    filler: ScriptedFiller, upstream: ScriptedUpstream, client: Client, diff_ids: object
) -> None:
    body = config_of(diff_ids)
    config = whole_blob(filler, body)
    pull_manifest(client, upstream.add_manifest("team/app", manifest_of(config, len(body), LAYERS)))
    assert get(client, config).body == body
    assert images(filler) == []


def test_a_blob_that_no_manifest_calls_a_configuration_is_not_told(
    filler: ScriptedFiller, client: Client
) -> None:
    get(client, whole_blob(filler, config_of(DIFF_IDS)))
    assert images(filler) == []


def test_images_of_which_every_client_shows_its_own_credentials_are_not_told(
    filler: ScriptedFiller, upstream: ScriptedUpstream
) -> None:
    body = config_of(DIFF_IDS)
    config = whole_blob(filler, body)
    manifest = upstream.add_manifest("team/app", manifest_of(config, len(body), LAYERS))
    keys = keys_of(upstream, access="passthrough")
    with Serving(filler, {upstream.host: keys}) as server, server.client() as client:
        pull_manifest(client, manifest)
        assert get(client, config).body == body
    assert images(filler) == []
