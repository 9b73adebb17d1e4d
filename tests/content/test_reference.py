"""Names of images: the grammar, Docker Hub's peculiarities, and what must never get through."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.content.digest import Digest
from headstart.content.errors import InvalidInput
from headstart.content.reference import (
    LONGEST_REPOSITORY,
    ImageReference,
    parse_reference,
    parse_registry,
    parse_repository,
    parse_tag,
    qualified_repository,
)

DIGEST = Digest.of(b"layer")

COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
REPOSITORY = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
UNLIKE_A_HOST = REPOSITORY.filter(lambda name: "." not in name.split("/")[0])
TAG = st.from_regex(re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII), fullmatch=True)
REGISTRY = st.one_of(
    st.sampled_from(["docker.io", "ghcr.io", "localhost", "localhost:5000", "[::1]:5000"]),
    st.from_regex(r"[a-z0-9]{1,10}(\.[a-z0-9]{1,10}){1,3}(:[1-9][0-9]{0,3})?", fullmatch=True),
)
TRAVERSAL = [
    "..",
    ".",
    "a/..",
    "../a",
    "a/../b",
    "a/./b",
    "/a",
    "a/",
    "a//b",
    "a\\b",
    "a/\0",
    "a%2f..",
    "%2e%2e/a",
    "a/b\n",
    "a\r\nHost: x",
    "a b",
    "~/a",
]


# --- repositories ---


@given(REPOSITORY)
def test_a_repository_of_the_grammar_is_taken_as_it_is(repository: str) -> None:
    assert parse_repository(repository) == repository


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "team/App",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a._b",
        ".a",
        "_a",
        "ä",
        "٣",
        "a:b",
        "a@b",
        "a?b",
        "a#b",
        *TRAVERSAL,
    ],
)
def test_other_repositories_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_repository(text)
    assert raised.value.field == "repository"
    assert "\n" not in str(raised.value)


@given(st.text(max_size=40))
def test_no_accepted_repository_leaves_its_directory(text: str) -> None:
    try:
        accepted = parse_repository(text)
    except InvalidInput:
        return
    for component in accepted.split("/"):
        assert component not in ("", ".", "..")
        assert re.fullmatch(r"[a-z0-9._-]+", component, re.ASCII)


def test_a_repository_has_at_most_255_characters() -> None:
    longest = "a" * LONGEST_REPOSITORY
    assert parse_repository(longest) == longest
    with pytest.raises(InvalidInput):
        parse_repository(longest + "a")


def test_refusing_a_long_name_does_not_take_long() -> None:
    """Nested repetition in the grammar must not backtrack: these end at once or never."""
    for text in ("a-" * 127, "a" * 254 + "/", "-".join("a" * 127), "a__" * 84 + "_"):
        with pytest.raises(InvalidInput):
            parse_repository(text + "!")


@pytest.mark.parametrize(
    ("registry", "repository", "qualified"),
    [
        ("docker.io", "alpine", "library/alpine"),
        ("docker.io", "team/app", "team/app"),
        ("docker.io", "library/alpine", "library/alpine"),
        ("ghcr.io", "alpine", "alpine"),
        ("localhost:5000", "alpine", "alpine"),
    ],
)
def test_only_docker_hub_keeps_single_names_below_library(
    registry: str, repository: str, qualified: str
) -> None:
    assert qualified_repository(registry, repository) == qualified


# --- tags and what follows /manifests/ ---


@given(TAG)
def test_a_tag_of_the_grammar_is_taken_as_it_is(tag: str) -> None:
    assert parse_tag(tag) == tag
    assert parse_reference(tag) == tag


@pytest.mark.parametrize(
    "text", ["", ".a", "-a", "a" * 129, "a:b", "a/b", "a@b", "ä", "a\n", "a b", "..", "a\0", "٣"]
)
def test_other_tags_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_tag(text)


def test_a_tag_has_at_most_128_characters() -> None:
    assert parse_tag("a" * 128) == "a" * 128


def test_what_has_a_colon_is_a_digest() -> None:
    assert parse_reference(str(DIGEST)) == DIGEST
    with pytest.raises(InvalidInput) as raised:
        parse_reference("sha256:abc")
    assert raised.value.field == "digest"


# --- registries ---


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("Index.Docker.IO", "docker.io"),
        ("GHCR.io", "ghcr.io"),
        ("localhost:5000", "localhost:5000"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("a" * 63 + ".example.com:65535", "a" * 63 + ".example.com:65535"),
    ],
)
def test_registries_are_named_in_one_way(text: str, registry: str) -> None:
    assert parse_registry(text) == registry
    assert parse_registry(registry) == registry


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://ghcr.io",
        "ghcr.io/",
        "ghcr.io/team",
        "user@ghcr.io",
        "ghcr.io:",
        "ghcr.io:0",
        "ghcr.io:65536",
        "ghcr.io:٣٣",
        "ghcr.io:-1",
        "-a.io",
        "a-.io",
        "a..b",
        ".a",
        "a.",
        "a_b.io",
        "a" * 64 + ".io",
        "ä.io",
        "[::1",
        "::1",
        "[]",
        "[:::]",
        "[fe80::1%eth0]",
        "ghcr.io\n",
        "ghcr.io\r\nX: y",
        ".".join(["a" * 50] * 6),
        *TRAVERSAL,
    ],
)
def test_other_registries_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_registry(text)
    assert raised.value.field == "registry"


# --- whole names ---


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine:3", "docker.io/library/alpine:3"),
        ("registry-1.docker.io/team/app", "docker.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("ghcr.io/alpine", "ghcr.io/alpine:latest"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"ghcr.io/a/b:v1@{DIGEST}", f"ghcr.io/a/b:v1@{DIGEST}"),
    ],
)
def test_names_are_completed_as_docker_does(text: str, whole: str) -> None:
    assert str(ImageReference.parse(text)) == whole


@given(
    registry=st.one_of(st.none(), REGISTRY),
    repository=UNLIKE_A_HOST,
    tag=st.one_of(st.none(), TAG),
    digest=st.one_of(st.none(), st.binary(max_size=8).map(Digest.of)),
)
def test_a_whole_name_reads_back_as_it_is_written(
    registry: str | None, repository: str, tag: str | None, digest: Digest | None
) -> None:
    text = f"{registry}/" if registry else ""
    text += repository
    text += f":{tag}" if tag else ""
    text += f"@{digest}" if digest else ""
    read = ImageReference.parse(text)
    assert ImageReference.parse(str(read)) == read
    assert read.digest == digest
    assert read.tag == (tag or (None if digest else "latest"))
    assert read.reference == (str(digest) if digest else read.tag)


@pytest.mark.parametrize("length", [247, 248, 255])
def test_library_counts_towards_the_longest_name(length: int) -> None:
    """``library/`` and 247 characters are 255: one more could not be asked for upstream."""
    text = "a" * length
    if length <= LONGEST_REPOSITORY - len("library/"):
        read = ImageReference.parse(text)
        assert ImageReference.parse(str(read)) == read
    else:
        with pytest.raises(InvalidInput):
            ImageReference.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":latest",
        "@",
        f"@{DIGEST}",
        "ghcr.io/",
        "ghcr.io/:v1",
        "alpine:",
        "alpine@",
        "alpine@latest",
        "alpine:v1:v2",
        f"alpine@{DIGEST}:v1",
        "https://ghcr.io/a",
        "ghcr.io/../a",
        "ghcr.io//a",
        "ghcr.io:99999/a",
        "Alpine",
        "a/b\n",
        " alpine",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        ImageReference.parse(text)


@given(st.text(max_size=60))
def test_reading_any_text_ends_in_a_name_or_a_refusal(text: str) -> None:
    try:
        read = ImageReference.parse(text)
    except InvalidInput:
        return
    assert parse_registry(read.registry) == read.registry
    assert parse_repository(read.repository) == read.repository
