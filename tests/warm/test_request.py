"""What a warm request may say, and the one line for what it may not."""

from typing import Any

import pytest

from headstart.command.complaint import ConfigurationError
from headstart.command.platform import own_platform
from headstart.content.manifest import Platform
from headstart.registry.upstream import Upstream
from proxy.warm.request import MOST_IMAGES, WarmRequest, more_urgent

UPSTREAMS = {
    "docker.io": Upstream("docker.io", "https://registry-1.docker.io"),
    "private.example": Upstream("private.example", "https://private.example", access="passthrough"),
}


def read(value: object) -> WarmRequest:
    return WarmRequest.read(value, UPSTREAMS)


def test_one_image_and_the_defaults() -> None:
    request = read({"image": "alpine"})
    assert [str(image) for image in request.images] == ["docker.io/library/alpine:latest"]
    assert (request.policy, request.priority, request.deadline) == ("auto", "warm", None)
    assert not request.ready
    assert request.platform == own_platform()


def test_several_images_each_once() -> None:
    request = read({"images": ["alpine", "docker.io/library/alpine:latest", "team/app:1"]})
    assert [str(image) for image in request.images] == [
        "docker.io/library/alpine:latest",
        "docker.io/team/app:1",
    ]


def test_what_is_written_is_read_again() -> None:
    asked = {
        "images": ["alpine:3", "team/app@sha256:" + "a" * 64],
        "platform": "linux/arm/v7",
        "policy": "none",
        "priority": "background",
        "deadline": "1m30s",
    }
    request = read(asked)
    assert request.deadline == 90.0
    assert not request.ready
    assert read(request.as_json()) == request
    everything = read({"image": "alpine", "platform": "all"})
    assert everything.platform is None
    assert read(everything.as_json()) == everything
    ready = read({"image": "alpine", "ready": True})
    assert ready.ready
    assert read(ready.as_json()) == ready


def test_the_same_work_is_told_by_images_platform_policy_deadline_and_ready() -> None:
    one = read({"images": ["a", "b"], "platform": "linux/amd64"})
    assert one.work == read({"images": ["b", "a"], "platform": "linux/amd64"}).work
    for other in (
        {"images": ["a"]},
        {"images": ["a", "b"], "platform": "all"},
        {"images": ["a", "b"], "policy": "none"},
        {"images": ["a", "b"], "deadline": 5},
        {"images": ["a", "b"], "ready": True},
    ):
        assert one.work != read({"platform": "linux/amd64", **other}).work
    urgent = {"images": ["a", "b"], "platform": "linux/amd64", "priority": "prefetch"}
    assert one.work == read(urgent).work


@pytest.mark.parametrize(
    ("machine", "platform"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7")],
)
def test_the_nodes_platform_as_images_call_it(machine: str, platform: str) -> None:
    assert own_platform(machine) == Platform.parse(platform)


def test_which_priority_goes_first() -> None:
    assert more_urgent("prefetch", "warm")
    assert more_urgent("warm", "background")
    assert not more_urgent("warm", "warm")


@pytest.mark.parametrize(
    ("asked", "field", "value", "words"),
    [
        ([], "", None, "is no JSON object (list); write image with one name"),
        (None, "", None, "is no JSON object"),
        ({}, "image", None, "is missing; write image with one name, or images with a list"),
        ({"image": "a", "images": ["b"]}, "image", None, "stands beside images"),
        ({"imges": ["a"]}, "imges", None, "is no known key; did you mean images?"),
        ({"image": "A"}, "image", "'A'", "is refused; write lower-case letters"),
        ({"image": 5}, "image", "5", "is of the wrong kind (int)"),
        ({"images": "a"}, "images", "'a'", "is of the wrong kind (str); write a list"),
        ({"images": []}, "images", None, "names nothing"),
        ({"images": ["a"] * (MOST_IMAGES + 1)}, "images", None, "names 101 images; name at most"),
        ({"images": ["a", "b@sha256:1"]}, "images[1]", "'b@sha256:1'", "is refused; write sha256:"),
        ({"image": "a", "platform": "linux"}, "platform", "'linux'", "write OS/ARCHITECTURE"),
        (
            {"image": "a", "policy": "al"},
            "policy",
            "'al'",
            "is none of its words; did you mean all",
        ),
        ({"image": "a", "priority": "client"}, "priority", "'client'", "known here: warm, back"),
        ({"image": "a", "deadline": "soon"}, "deadline", "'soon'", "write a duration such as"),
        ({"image": "a", "deadline": 0}, "deadline", "0", "would end everything at once"),
        ({"image": "a", "deadline": True}, "deadline", "True", "is of the wrong kind (bool)"),
        (
            {"image": "a", "ready": "yes"},
            "ready",
            "'yes'",
            "is of the wrong kind (str); write true or false",
        ),
        ({"image": "a", "ready": 1}, "ready", "1", "is of the wrong kind (int)"),
        ({"image": "a", "ready": None}, "ready", None, "is of the wrong kind (NoneType)"),
        (
            {"image": "a", "ready": True, "policy": "none"},
            "ready",
            "True",
            "wants layers, of which policy none brings none; leave out ready, or the policy",
        ),
        (
            {"image": "other.example/a"},
            "image",
            "'other.example/a:latest'",
            "which is not among the upstreams; name an image of docker.io, private.example",
        ),
        (
            {"images": ["a", "private.example/a"]},
            "images[1]",
            "'private.example/a:latest'",
            "its own credentials (access: passthrough); a warm job has none; give upstreams.",
        ),
    ],
)
def test_a_refusal_names_field_value_and_remedy(
    asked: Any, field: str, value: str | None, words: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(asked)
    error = refused.value
    assert (error.field, error.value) == (field, value)
    assert words in f"{error.problem}; {error.remedy}"
    assert "config.yaml" not in error.remedy
