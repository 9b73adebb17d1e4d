"""Faults 36 to 42: many clients, clients that leave or stand still, and an orderly end."""

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.command import children
from tests.doubles.scripted_upstream import OCI_MANIFEST, ScriptedUpstream
from tests.faults.reading import End
from tests.faults.setting import (
    FETCH,
    MIB,
    PATIENT,
    REPOSITORY,
    Setting,
    new_content,
    of_blobs,
    pulls,
    running_setting,
)
from tests.faults.streaming import Cold, Stream
from tests.faults.watching import (
    asked,
    assert_each_byte_once,
    blobs_closed,
    cut_short,
    eventually,
)
from tests.parts.fixtures import MakeRegistry
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.nginx import Front
from tests.parts.pattern import Pattern
from tests.parts.ports import accepts
from tests.parts.processes import descriptors, peak_memory, tree
from tests.parts.registry_api import RegistryApi


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A mirror of 4 connections to an upstream, each for ranges of 1 MiB."""
    directory = tmp_path_factory.mktemp("concurrency")
    with running_setting(directory, fresh=24, fetch=PATIENT) as running:
        yield running


# --- 36: sharing ---


def test_f36_clients_share_a_cold_blob_before_its_upstream_has_answered(setting: Setting) -> None:
    blob = Cold(setting, 8 * MIB + 12_345, of_blobs(delay=1.0, times=1))
    clients = blob.clients(24)
    time.sleep(0.5)
    assert len(blob.upstream.blob_requests()) == 1, "all of them wait for the one answer"
    assert not any(client.status for client in clients)
    assert all(client.finish().right() for client in clients)
    assert_each_byte_once(blob.upstream.blob_requests(), len(blob.content))


def test_f36_clients_that_come_while_bytes_arrive_cause_no_second_fetch(setting: Setting) -> None:
    blob = Cold(setting, 8 * MIB, of_blobs(rate=2 * MIB))
    clients = [blob.client()]
    for count in (1, 2, 3):
        clients[0].reach(count * MIB)
        # A whole pull, one that resumes, and a range as long as one of ours: it cuts none short.
        clients += [
            blob.client(),
            blob.client(f"{count * MIB + 77}-"),
            blob.client("6000000-7999999"),
        ]
    assert all(client.finish().right() for client in clients)
    assert_each_byte_once(blob.upstream.blob_requests(), len(blob.content))


class Counted:
    """A docker-registry behind an nginx whose access log counts ranges, and a mirror of both."""

    size = 128 * MIB

    def __init__(
        self, parts: ExitStack, make_registry: MakeRegistry, directory: Path, **fetch: object
    ) -> None:
        registry = make_registry()
        blobs = registry.directory / "storage" / "docker" / "registry" / "v2" / "blobs"
        self.front = parts.enter_context(Front(directory / "front", registry.url, blobs=blobs))
        self.content = Pattern(self.size, 64).read(0, self.size)
        self.digest = RegistryApi(registry.url).push_blob(REPOSITORY, self.content)
        self.mirror = parts.enter_context(
            Mirror(
                directory / "mirror",
                {self.front.host: upstream_at(self.front.url)},
                settings={"fetch": fetch} if fetch else None,
            )
        )

    def pull_by(self, count: int) -> None:
        clients = [
            Stream(self.mirror.port, self.front.host, self.digest, self.content)
            for _ in range(count)
        ]
        assert all(client.finish(120).right() for client in clients)


def test_f36_64_cold_clients_cause_as_many_ranges_as_the_blob_has(
    parts: ExitStack, make_registry: MakeRegistry, tmp_path: Path
) -> None:
    fetch = {"request_size": "32MiB", "reissue": "disabled"}
    counted = Counted(parts, make_registry, tmp_path, **fetch)
    counted.pull_by(64)
    ranges = counted.front.wait_for_accesses(4)
    assert [access.range for access in ranges if access.of_blob] == [
        access.range for access in counted.front.blob_ranges()
    ]
    wanted = [f"bytes={at}-{at + 32 * MIB - 1}" for at in range(0, counted.size, 32 * MIB)]
    assert sorted(str(access.range) for access in counted.front.blob_ranges()) == sorted(wanted)


def test_f36_64_cold_clients_with_the_defaults_fetch_little_twice(
    parts: ExitStack, make_registry: MakeRegistry, tmp_path: Path
) -> None:
    counted = Counted(parts, make_registry, tmp_path)
    counted.pull_by(64)
    eventually(lambda: _blob_bytes(counted.front) >= counted.size, 5, "all ranges are in the log")
    time.sleep(0.2)
    assert _blob_bytes(counted.front) <= 1.02 * counted.size


def _blob_bytes(front: Front) -> int:
    return sum(access.body_bytes for access in front.accesses() if access.of_blob)


# --- 37: the first client leaves ---


@pytest.mark.parametrize("after", [0, 1 * MIB], ids=["before the head", "in the middle"])
def test_f37_the_others_do_not_notice_that_the_first_client_leaves(
    setting: Setting, after: int
) -> None:
    slow = of_blobs(rate=1.5 * MIB)
    blob = Cold(setting, 8 * MIB, of_blobs(delay=0.7, times=1), slow)
    first = blob.client()
    others = blob.clients(3)
    if after:
        first.reach(after)
    else:
        eventually(blob.upstream.blob_requests, 5, "the upstream is asked")
    first.leave()
    assert all(client.finish().right() for client in others)
    assert_each_byte_once(blob.upstream.blob_requests(), len(blob.content))
    assert not cut_short(blob.upstream.blob_requests())


# --- 38: the fill fails ---


def test_f38_one_failure_is_retried_once_for_all_who_wait(setting: Setting) -> None:
    blob = Cold(setting, 8 * MIB, of_blobs(status=500, skip=2, times=1))
    clients = blob.clients(8)
    assert all(client.finish().right() for client in clients)
    assert len(blob.upstream.blob_requests()) == 8 + 1


def test_f38_everybody_hears_that_nothing_came(setting: Setting) -> None:
    blob = Cold(setting, 4 * MIB, of_blobs(status=500))
    clients = blob.clients(8)
    for client in clients:
        assert not client.finish(30).right()
        assert client.status == 503
    assert len(blob.upstream.blob_requests()) <= 6, "the tries are shared, too"
    blob.upstream.clear_rules()
    pulls(setting, blob.upstream.host, blob.digest, blob.content)


def test_f38_everybody_hears_that_the_rest_does_not_come(setting: Setting) -> None:
    blob = Cold(setting, 8 * MIB, of_blobs(status=500, skip=3))
    clients = blob.clients(8)
    for client in clients:
        assert not client.finish(30).right()
        assert client.status == 503 or client.end in (End.RESET, End.SHORT)
    blob.upstream.clear_rules()
    pulls(setting, blob.upstream.host, blob.digest, blob.content)


# --- 39: a slow client ---


def test_f39_a_client_that_reads_nothing_holds_nobody_and_no_memory(setting: Setting) -> None:
    blob = Cold(setting, 64 * MIB)
    processes = tree(setting.mirror.running.pid)
    for pid in processes:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM starts anew
    before = sum(map(peak_memory, processes))
    slow = blob.client(receive_buffer=64 * 1024)
    slow.hold()
    fast = blob.clients(4)
    assert all(client.finish().right() for client in fast)
    assert slow.running
    assert slow.received < len(blob.content) / 2
    grown = sum(map(peak_memory, processes)) - before
    assert grown < 32 * MIB, f"{grown / MIB:.0f} MiB more for a client that does not read"
    assert slow.finish().right()
    assert_each_byte_once(blob.upstream.blob_requests(), len(blob.content))


# --- 40: an open range that is closed early ---


def test_f40_what_nobody_wants_any_more_is_not_fetched(setting: Setting) -> None:
    blob = Cold(setting, 32 * MIB, of_blobs(rate=256 * 1024))
    client = blob.client("0-")
    client.reach(300_000)
    client.leave()
    assert client.wrong_at is None

    def all_ended() -> bool:
        return all(request.finished for request in blob.upstream.blob_requests())

    eventually(all_ended, 10, "the connections to the upstream are let go")
    requests = blob.upstream.blob_requests()
    assert cut_short(requests), "every range came to its end"
    assert blob.upstream.blob_bytes_sent() < 8 * MIB
    time.sleep(0.3)
    assert len(blob.upstream.blob_requests()) == len(requests)
    blob.upstream.clear_rules()
    pulls(setting, blob.upstream.host, blob.digest, blob.content)


def test_f40_what_others_want_goes_on(setting: Setting) -> None:
    blob = Cold(setting, 8 * MIB, of_blobs(rate=1 * MIB))
    leaving, staying = blob.client("0-"), blob.client("0-")
    leaving.reach(300_000).leave()
    assert staying.finish().right()
    assert_each_byte_once(blob.upstream.blob_requests(), len(blob.content))
    assert not cut_short(blob.upstream.blob_requests())


# --- 41: a prefetch and a client ---


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Setting]:
    """A mirror that has one connection to its upstream."""
    with running_setting(tmp_path, fresh=1, fetch={"max_connections": 1, **PATIENT}) as running:
        yield running


def test_f41_a_client_overtakes_a_warm_up_and_fetches_nothing_twice(narrow: Setting) -> None:
    blob = Cold(narrow, 12 * MIB, of_blobs(rate=3 * MIB))
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": len(blob.content)}
    config = b"{}"
    described = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob.upstream.add_blob(REPOSITORY, config),
            "size": len(config),
        },
        "layers": [{**layer, "digest": blob.digest}],
    }
    blob.upstream.add_manifest(REPOSITORY, json.dumps(described).encode(), tags=["v1"])
    image = f"{blob.upstream.host}/{REPOSITORY}:v1"
    job = narrow.mirror.ask("/warm", "POST", {"image": image})

    def layer_requests() -> list[tuple[int, int]]:
        return [
            bounds
            for request in blob.upstream.requests_to(blob.digest, "GET")
            for bounds in asked([request])
        ]

    eventually(lambda: len(layer_requests()) >= 2, 10, "the warm-up has begun with the layer")
    deep = blob.client(f"{10 * MIB}-{11 * MIB - 1}")
    whole = blob.client()
    assert deep.finish().right()
    before = layer_requests().index((10 * MIB, 11 * MIB))
    assert before < 8, f"the client's range came as number {before + 1}"
    assert whole.finish().right()

    def done() -> bool:
        return bool(narrow.mirror.ask(f"/warm/{job['id']}")["state"] == "done")

    eventually(done, 10, "the warm-up is done, too")
    requests = blob.upstream.requests_to(blob.digest, "GET")
    assert_each_byte_once(requests, len(blob.content))


# --- 42: SIGTERM ---


def test_f42_pulls_under_way_are_finished_after_sigterm(tmp_path: Path) -> None:
    with running_setting(tmp_path, fresh=1, fetch=PATIENT) as setting:
        blob = Cold(setting, 8 * MIB, of_blobs(rate=1 * MIB))
        client = blob.client().reach(100_000)
        process = setting.mirror.running
        process.signal(signal.SIGTERM)
        eventually(lambda: not accepts(setting.mirror.port), 5, "nobody new is let in")
        assert client.running
        assert client.finish().right()
        eventually(lambda: process.exit_status() is not None, 10, "it ends then")
        assert process.exit_status() == 0
        assert not list((tmp_path / "cache" / "run").glob("*.sock"))
        setting.mirror.stop()
        setting.mirror.start()
        blob.upstream.forget_requests()
        pulls(setting, blob.upstream.host, blob.digest, blob.content)
        assert not blob.upstream.blob_requests(), "it was kept"


class Impatient(Mirror):
    """A mirror whose launcher waits 2 s for pulls to end."""

    def arguments(self) -> Sequence[str | Path]:
        super().arguments()
        commands = children(self.directory / "config.yaml")
        return [sys.executable, "-P", "-m", "proxy.launcher", "2.0", json.dumps(commands)]


def test_f42_a_pull_that_does_not_end_is_cut_at_the_deadline(tmp_path: Path) -> None:
    with ScriptedUpstream() as upstream:
        upstream.add_rule(of_blobs(rate=128 * 1024))
        content = new_content(16 * MIB)
        digest = upstream.add_blob(REPOSITORY, content)
        hosts = {upstream.host: upstream_at(upstream.url)}
        with Impatient(tmp_path, hosts, settings={"fetch": {**FETCH, **PATIENT}}) as mirror:
            client = Stream(mirror.port, upstream.host, digest, content).reach(100_000)
            began = time.monotonic()
            mirror.running.signal(signal.SIGTERM)
            assert not client.finish(20).right()
            process = mirror.running
            eventually(lambda: process.exit_status() is not None, 20, "it ends")
            assert time.monotonic() - began > 1.5, "it was given its time"
            assert process.exit_status() == 0


# --- all of it ---


def test_f37_to_f40_leave_nothing_open(setting: Setting) -> None:
    """What is left by clients that left, stood still or were failed: nothing, after a while."""
    blobs_closed(setting.mirror)
    before = {pid: descriptors(pid) for pid in tree(setting.mirror.running.pid)}
    failing = Cold(setting, 4 * MIB, of_blobs(status=404))
    for client in failing.clients(16):
        assert not client.finish(30).right()
    leaving = Cold(setting, 8 * MIB, of_blobs(rate=1 * MIB))
    for client in leaving.clients(16):
        client.reach(1).leave()
    blobs_closed(setting.mirror)
    # Connections to upstreams stay open for a while: one for each that an upstream may have.
    allowed = 2 * 4 + 2

    def back() -> bool:
        return all(descriptors(pid) <= count + allowed for pid, count in before.items())

    eventually(back, 10, f"{before} and at most {allowed} connections more")
