"""Fixtures of the registry package's tests."""

from collections.abc import Iterator

import pytest

from tests.doubles.scripted_upstream import ScriptedUpstream


@pytest.fixture(autouse=True)
def no_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine's environment says, tests connect directly unless they say otherwise."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def double() -> Iterator[ScriptedUpstream]:
    """A scripted upstream."""
    with ScriptedUpstream() as running:
        yield running


@pytest.fixture
def storage() -> Iterator[ScriptedUpstream]:
    """A second one, to redirect to."""
    with ScriptedUpstream() as running:
        yield running
