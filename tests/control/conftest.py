"""One node for the tests of a module; each uses images of its own."""

from collections.abc import Iterator

import pytest

from tests.control.node import HOST, Node
from tests.doubles.scripted_upstream import ScriptedUpstream
from tests.parts.mirror import Mirror, upstream_at

TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A mirror on every address of the machine, with a control token."""
    directory = tmp_path_factory.mktemp("node")
    token = directory / "token"
    token.write_text(f"{TOKEN}\n")
    with ScriptedUpstream() as upstream:
        mirror = Mirror(
            directory,
            {HOST: upstream_at(upstream.url)},
            settings={"control": {"token_file": str(token)}},
        )
        mirror.settings = {
            **mirror.settings,
            "mirror": {"listen": f"0.0.0.0:{mirror.port}"},
        }
        with mirror:
            yield Node(upstream, mirror)
