"""Prefetch lists: put, shown, forgotten, and refused where they are none."""

import base64
import json

import pytest

from headstart.content.landmarks.caps import DEFAULT_LIST_CAPS
from headstart.content.landmarks.prefetch_list import (
    MEDIA_TYPE,
    VERSION,
    ListedFile,
    PrefetchList,
)
from tests.control.calls import assert_problem
from tests.control.node import Node

IMAGE = "sha256:" + "ab" * 32
LISTED = PrefetchList((ListedFile(b"usr/bin/python3.11", 0), ListedFile(b"srv/app.py", 2)))


def path_of(digest: str) -> str:
    return f"/landmarks/{digest}"


def test_a_list_is_given_back_as_it_was_put(node: Node) -> None:
    path = path_of(IMAGE)
    assert node.caller.call(path, "PUT", LISTED.encode()).status == 204
    answer = node.caller.call(path)
    assert (answer.status, answer.body) == (200, LISTED.encode())
    assert answer.fields["content-type"] == MEDIA_TYPE
    other = PrefetchList(())
    assert node.caller.call(path, "PUT", other.encode()).status == 204
    assert node.caller.call(path).body == other.encode()
    assert node.caller.call(path, "DELETE").status == 204
    assert_problem(node.caller.call(path), 404, type="no-list", field="digest", value=IMAGE)
    assert_problem(
        node.caller.call(path, "DELETE"), 404, type="no-list", field="digest", value=IMAGE
    )


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ([{"path": "../etc/shadow"}], "files[0].path"),
        ([{"path": "a"}, {"path": "b", "layer": -1}], "files[1].layer"),
        ([{"pathBase64": base64.b64encode(b"plain").decode()}], "files[0].pathBase64"),
        ([{"path": "a", "ranges": [[0, 0]]}], "files[0].ranges[0]"),
        ({}, "files"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_with_its_field(
    node: Node, files: object, field: str
) -> None:
    body = {"version": VERSION, "mediaType": MEDIA_TYPE, "files": files}
    answer = node.caller.call(path_of("sha256:" + "cd" * 32), "PUT", body)
    assert answer.status == 422
    assert answer.json["field"] == field
    assert node.caller.call(path_of("sha256:" + "cd" * 32)).status == 404


def test_what_is_no_digest_is_refused(node: Node) -> None:
    answer = node.caller.call(path_of("latest"), "PUT", LISTED.encode())
    assert answer.status == 422
    assert answer.json["value"] == "latest"


def test_a_list_that_is_too_long_is_refused(node: Node) -> None:
    body = json.dumps({"files": "x" * DEFAULT_LIST_CAPS.json_bytes}).encode()
    assert_problem(node.caller.call(path_of(IMAGE), "PUT", body), 413, type="too-large")
