"""Everything below /v2/ but the bytes of blobs, over a real socket: answers and refusals."""

import json
import logging
from collections.abc import Iterator

import pytest

from headstart.content.manifest import ACCEPT, OCI_INDEX, OCI_MANIFEST
from proxy.serve.registry import RegistryApplication
from tests.doubles.scripted_upstream import Rule, ScriptedUpstream
from tests.serve.running_server import Client
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import (
    LAYER_DIGEST,
    MANIFEST,
    Serving,
    error_of,
    keys_of,
    whole_blob,
)

CONTAINERD = f"Accept: {ACCEPT}, */*"


# --- the endpoints ---


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/v2/?ns=nowhere.example"])
def test_version_check_asks_nobody(
    client: Client, upstream: ScriptedUpstream, filler: ScriptedFiller, path: str
) -> None:
    response = client.get(path)
    assert (response.status, response.body) == (200, b"{}")
    assert response.fields["docker-distribution-api-version"] == "registry/2.0"
    assert (upstream.requests, filler.received) == ([], [])


def test_containerd_pulls_head_by_tag_and_get_by_digest(
    client: Client, upstream: ScriptedUpstream
) -> None:
    digest = upstream.add_manifest("team/app", MANIFEST, tags=["latest"])
    client.ask(f"/v2/team/app/manifests/latest?ns={upstream.host}", "HEAD", CONTAINERD)
    head = client.head()
    assert head.status == 200
    assert head.fields["docker-content-digest"] == digest
    assert head.fields["content-length"] == str(len(MANIFEST))
    assert head.fields["content-type"] == OCI_MANIFEST
    assert head.fields["oci-namespace"] == upstream.host
    client.ask(f"/v2/team/app/manifests/{digest}?ns={upstream.host}", "GET", CONTAINERD)
    response = client.response()
    assert (response.body, response.fields["x-headstart-cache"]) == (MANIFEST, "hit")
    assert response.fields["etag"] == f'"{digest}"'


def test_accept_fields_are_joined(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.add_manifest("team/app", MANIFEST, tags=["latest"])
    fields = ["Accept: application/x", f"Accept: {OCI_MANIFEST}"]
    client.ask("/v2/team/app/manifests/latest", "GET", *fields)
    assert client.response().status == 200
    assert upstream.requests[-1].headers["accept"] == f"{OCI_MANIFEST}, application/x"


def test_stale_tag_carries_a_warning(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.add_manifest("team/app", MANIFEST, tags=["latest"])
    assert "warning" not in client.get("/v2/team/app/manifests/latest").fields
    upstream.stop()
    response = client.get("/v2/team/app/manifests/latest")
    assert response.body == MANIFEST
    assert response.fields["warning"].startswith('299 - "the upstream does not answer;')


def test_sizes_of_a_manifest_go_along_when_its_blobs_are_opened(
    client: Client, upstream: ScriptedUpstream, filler: ScriptedFiller
) -> None:
    upstream.add_manifest("team/app", MANIFEST, tags=["latest"])
    client.get("/v2/team/app/manifests/latest")
    assert client.get(f"/v2/team/app/blobs/{LAYER_DIGEST}").status == 404
    assert client.get(f"/v2/team/other/blobs/{LAYER_DIGEST}").status == 404
    sizes = [message.get("size") for message in filler.messages("open")]
    assert sizes == [12_345, None]


def test_tags_are_passed_through_with_the_next_page_where_the_client_finds_it(
    client: Client, upstream: ScriptedUpstream
) -> None:
    link = '</v2/team/app/tags/list?n=2&last=b>; rel="next"'
    upstream.add_rule(
        Rule(path="/tags/list", status=200, body=b'{"tags":["a","b"]}', headers={"Link": link})
    )
    response = client.get(f"/v2/team/app/tags/list?n=2&ns={upstream.host}")
    assert (response.status, response.body) == (200, b'{"tags":["a","b"]}')
    following = f"/v2/team/app/tags/list?n=2&last=b&ns={upstream.host}"
    assert response.fields["link"] == f'<{following}>; rel="next"'
    assert upstream.requests[-1].query == "n=2"
    prefixed = f"/v2/{upstream.host}/team/app/tags/list"
    assert client.get(prefixed).fields["link"] == f'<{prefixed}?n=2&last=b>; rel="next"'


def test_referrers(client: Client, upstream: ScriptedUpstream) -> None:
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    upstream.add_referrers("team/app", LAYER_DIGEST, index)
    response = client.get(f"/v2/team/app/referrers/{LAYER_DIGEST}?artifactType=application/x")
    assert (response.body, response.fields["content-type"]) == (index, OCI_INDEX)
    assert "oci-filters-applied" not in response.fields
    assert upstream.requests[-1].query == "artifactType=application/x"
    upstream.add_rule(
        Rule(
            path="/referrers/",
            status=200,
            body=index,
            headers={"Content-Type": OCI_INDEX, "OCI-Filters-Applied": "artifactType"},
        )
    )
    response = client.get(f"/v2/team/app/referrers/{LAYER_DIGEST}?artifactType=application/x")
    assert response.fields["oci-filters-applied"] == "artifactType"


def test_referrers_of_an_old_registry_are_an_empty_index(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.add_rule(Rule(path="/referrers/", status=404))
    response = client.get(f"/v2/team/app/referrers/{LAYER_DIGEST}")
    assert (response.status, response.fields["content-type"]) == (200, OCI_INDEX)
    assert json.loads(response.body) == {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [],
    }


@pytest.mark.parametrize("tail", ["tags/list", f"referrers/{LAYER_DIGEST}", "manifests/latest"])
def test_upstream_that_is_down_is_503(
    client: Client, upstream: ScriptedUpstream, tail: str
) -> None:
    upstream.stop()
    response = client.get(f"/v2/team/app/{tail}")
    assert (response.status, error_of(response)["code"]) == (503, "UNAVAILABLE")


def test_throttled_upstream_says_when_to_come_again(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.add_rule(Rule(status=429, headers={"Retry-After": "120"}))
    response = client.get("/v2/team/app/manifests/latest")
    assert (response.status, error_of(response)["code"]) == (503, "TOOMANYREQUESTS")
    assert 100 < int(response.fields["retry-after"]) <= 120


# --- refusals ---


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/Team/app/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/a/../b/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/a%2F..%2Fb/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/app/manifests/-x", 400, "MANIFEST_INVALID"),
        ("/v2/app/manifests/sha256:12", 400, "DIGEST_INVALID"),
        ("/v2/app/blobs/sha256:12", 400, "DIGEST_INVALID"),
        ("/v2/app/referrers/x", 400, "DIGEST_INVALID"),
        ("/v2/app/manifests/latest?ns=quay.io", 404, "NAME_UNKNOWN"),
        ("/v2/app/manifests/latest?ns=a/b", 400, "NAME_INVALID"),
        ("/v2/app/manifests/latest?ns=a&ns=b", 400, "NAME_INVALID"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/v2/app/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/app/manifests/{LAYER_DIGEST}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/app/blobs/{LAYER_DIGEST}", 404, "BLOB_UNKNOWN"),
    ],
)
def test_refusals_are_named(client: Client, path: str, status: int, code: str) -> None:
    response = client.get(path)
    assert (response.status, error_of(response)["code"]) == (status, code)
    assert client.get("/v2/").status == 200  # and the connection goes on


def test_malformed_input_is_told_with_its_remedy(client: Client) -> None:
    error = error_of(client.get("/v2/app/blobs/sha256:12"))
    assert error["detail"]["field"] == "digest"
    assert error["detail"]["value"] == "sha256:12"
    assert "64" in error["detail"]["remedy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_405(client: Client, method: str) -> None:
    client.ask(f"/v2/app/blobs/{LAYER_DIGEST}", method, "Content-Length: 0")
    response = client.response()
    assert (response.status, response.fields["allow"]) == (405, "GET, HEAD")
    assert error_of(response)["code"] == "UNSUPPORTED"


def test_unknown_tags_are_not_found_on_tags_list(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.add_rule(Rule(path="/tags/list", status=404))
    response = client.get("/v2/absent/tags/list")
    assert (response.status, error_of(response)["code"]) == (404, "NAME_UNKNOWN")


def test_an_error_of_our_own_is_a_500_without_its_text(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(RegistryApplication, "_answer", fail)
    response = client.get("/v2/app/manifests/latest")
    assert response.status == 500
    assert b"secret" not in response.body
    assert error_of(response)["code"] == "UNKNOWN"
    assert "an error of the mirror itself" in caplog.text


def test_log_lines_cannot_be_forged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.get("/v2/a%0aINFO%20forged/manifests/latest")
    assert "\nINFO forged" not in caplog.text


# --- upstreams ---


@pytest.fixture
def second() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as running:
        yield running


def test_ns_prefix_and_default_choose_the_upstream(
    filler: ScriptedFiller, upstream: ScriptedUpstream, second: ScriptedUpstream
) -> None:
    upstream.add_manifest("team/app", MANIFEST, tags=["one"])
    second.add_manifest("team/app", MANIFEST, tags=["two"])
    upstreams = {upstream.host: keys_of(upstream), second.host: keys_of(second)}
    with Serving(filler, upstreams) as server, server.client() as client:
        found = {
            path: client.get(path).status
            for path in (
                "/v2/team/app/manifests/one",
                "/v2/team/app/manifests/two",
                f"/v2/team/app/manifests/two?ns={second.host}",
                f"/v2/{second.host}/team/app/manifests/two",
                f"/v2/{second.host}/team/app/manifests/two?ns={second.host}",
                f"/v2/{upstream.host}/team/app/manifests/one",
            )
        }
        assert list(found.values()) == [200, 404, 200, 200, 200, 200]
        assert client.get(f"/v2/{second.host}/team/app/blobs/{LAYER_DIGEST}").status == 404
        last = filler.messages("open")[-1]
        assert (last["upstream"], last["repository"]) == (second.host, "team/app")


def test_blob_of_one_upstream_is_opened_again_for_another(
    filler: ScriptedFiller, upstream: ScriptedUpstream, second: ScriptedUpstream
) -> None:
    upstreams = {upstream.host: keys_of(upstream), second.host: keys_of(second)}
    with Serving(filler, upstreams) as server, server.client() as client:
        digest = whole_blob(filler)
        for path in (f"team/app/blobs/{digest}", f"team/other/blobs/{digest}") * 2:
            client.ask(f"/v2/{path}", "GET", "Range: bytes=0-0")
            assert client.response().status == 206
        assert len(filler.messages("open")) == 1
        client.ask(f"/v2/{second.host}/team/app/blobs/{digest}", "GET", "Range: bytes=0-0")
        client.response()
        assert [message["upstream"] for message in filler.messages("open")] == [
            upstream.host,
            second.host,
        ]
