"""The mirror that the fault tests share."""

from collections.abc import Iterator

import pytest

from tests.faults.setting import Setting, running_setting

UPSTREAMS = 160
"""More than all tests of a session take: each needs some of its own."""


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One mirror for all tests that neither stop it nor need it otherwise configured."""
    with running_setting(tmp_path_factory.mktemp("faults"), fresh=UPSTREAMS) as running:
        yield running
