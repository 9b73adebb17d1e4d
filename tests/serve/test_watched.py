"""What the book of pulls is told."""

from collections.abc import Iterator
from typing import Any

import pytest

from headstart.content.digest import Digest
from headstart.store.errors import FillFailed
from proxy.serve.services import BlobWatch, Unwatched
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.serve.running_server import Client, wait_until
from tests.serve.scripted_filler import ScriptedFiller
from tests.serve.serving import (
    LAYER_DIGEST,
    MANIFEST,
    PAYLOAD,
    SIZE,
    Serving,
    ask,
    await_wants,
    get,
    keys_of,
)

HEX = "sha256:" + "a" * 64


class Book(Unwatched):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.manifests: list[tuple[Any, ...]] = []
        self.blobs: list[tuple[Any, ...]] = []
        self.watches: list[Watch] = []

    def manifest_served(self, *told: Any) -> None:
        self.manifests.append(told)

    def blob(self, *told: Any) -> BlobWatch:
        self.blobs.append(told)
        self.watches.append(Watch())
        return self.watches[-1]


class Watch:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.cached = self.fetched = 0
        self.filler_seconds = self.client_seconds = 0.0
        self.reasons: list[str] = []
        self.ended = False

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True

    def sent(self, count: int, from_cache: bool) -> None:
        if from_cache:
            self.cached += count
        else:
            self.fetched += count

    def waited_for_filler(self, seconds: float) -> None:
        self.filler_seconds += seconds

    def waited_for_client(self, seconds: float) -> None:
        self.client_seconds += seconds

    def failed(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def watched(filler: ScriptedFiller, upstream: ScriptedUpstream, book: Book) -> Iterator[Client]:
    with (
        Serving(filler, {upstream.host: keys_of(upstream)}, book) as server,
        server.client() as client,
    ):
        yield client


def test_book_is_told_of_manifests(watched: Client, upstream: ScriptedUpstream, book: Book) -> None:
    digest = upstream.add_manifest("team/app", MANIFEST, tags=["latest"])
    watched.ask("/v2/team/app/manifests/latest", "GET", "User-Agent: containerd/2.0")
    watched.response()
    wait_until(lambda: len(book.manifests) == 1)
    *told, document = book.manifests[0]
    assert told == ["127.0.0.1", "containerd/2.0", upstream.host, "team/app", "latest", digest]
    assert document.config.digest == Digest.parse(LAYER_DIGEST)


def test_book_is_told_what_came_from_where(
    watched: Client, upstream: ScriptedUpstream, filler: ScriptedFiller, book: Book
) -> None:
    digest = filler.add_blob(PAYLOAD)
    filler.bring(digest, 1_000_000)
    ask(watched, digest)
    await_wants(filler)
    assert watched.head().status == 200
    assert watched.exactly(1_000_000) == PAYLOAD[:1_000_000]
    filler.bring(digest)
    filler.verify(digest)
    watched.exactly(SIZE - 1_000_000)
    get(watched, digest, "bytes=0-9")
    wait_until(lambda: [watch.ended for watch in book.watches] == [True, True])
    assert book.blobs[0] == ("127.0.0.1", upstream.host, "team/app", digest, SIZE)
    cold, warm = book.watches
    assert (cold.cached, cold.fetched) == (1_000_000, SIZE - 1_000_000)
    assert cold.filler_seconds > 0
    assert (warm.cached, warm.fetched) == (10, 0)
    assert cold.reasons == warm.reasons == []


def test_book_is_told_of_failures(watched: Client, filler: ScriptedFiller, book: Book) -> None:
    digest = filler.add_blob(PAYLOAD)
    ask(watched, digest)
    await_wants(filler)
    filler.fail(digest, FillFailed("deadline", "nothing came"))
    assert watched.response().status == 503
    wait_until(lambda: [watch.reasons for watch in book.watches] == [["nothing came"]])


def test_a_client_that_leaves_is_no_failure(
    filler: ScriptedFiller, upstream: ScriptedUpstream, book: Book
) -> None:
    digest = filler.add_blob(PAYLOAD)
    with Serving(filler, {upstream.host: keys_of(upstream)}, book) as server:
        with server.client() as client:
            ask(client, digest)
            await_wants(filler)
        wait_until(lambda: [watch.ended for watch in book.watches] == [True])
    assert book.watches[0].reasons == []
