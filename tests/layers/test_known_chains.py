"""Whoever has an image's configuration may ask for its chain IDs at once."""

import anyio
import pytest

from tests.layers.images import gzipped, serve, tar_of
from tests.layers.stage import Stage

pytestmark = pytest.mark.anyio
IMAGES = 200
"""The digest of one configuration in a hundred passes just while its answer begins."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_chain_of_an_image_is_known_when_its_configuration_has_come(
    stage: Stage,
) -> None:
    unknown = []
    with anyio.fail_after(120):
        async with stage.client() as client:
            for number in range(IMAGES):
                layer = gzipped(tar_of({"etc/number": b"%d of those" % number}))
                image = serve(stage.upstream, [layer], tag=f"known{number}")
                stage.seen(image)
                if await client.chain(image.chains[0]) is None:
                    unknown.append(number)
    assert not unknown
