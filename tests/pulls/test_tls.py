"""Pulls over TLS: from a mirror that has a certificate, and by it from an upstream that has one."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.doubles.certificates import Authority
from tests.parts.clients import Arrived, Ctr
from tests.parts.curl import fetch
from tests.parts.fixtures import MakeClient, MakeRegistry
from tests.parts.images import Image, push, sha256_of
from tests.parts.mirror import Mirror, upstream_at
from tests.parts.processes import ProcessFailed
from tests.parts.registry import Registry
from tests.pulls.skopeo import copy
from tests.pulls.upstreams import AWAY, HOST

REPOSITORY = "team/tls"


@pytest.fixture(scope="module")
def upstream(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[Registry]:
    """A registry with a certificate of the authority."""
    directory = tmp_path_factory.mktemp("tls-upstream")
    with Registry(directory, tls=authority.issue()) as registry:
        yield registry


@pytest.fixture(scope="module")
def mirror(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, upstream: Registry
) -> Iterator[TlsMirror]:
    """TLS on both sides."""
    directory = tmp_path_factory.mktemp("tls-mirror")
    keys = upstream_at(upstream.url, ca_file=str(authority.ca_file))
    with TlsMirror(directory, {HOST: keys}, authority) as mirror:
        yield mirror
