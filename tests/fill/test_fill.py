"""A fill without a filler around it: what those who have it open are told, and in which order."""

import asyncio

from headstart.store.errors import FillFailed
from proxy.fill.fill import Fill
from proxy.fill.parties import Want
from tests.fill.fills import Upstreams


class Told:
    """A client that has the blob open, and writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def notify_files(self, fill: Fill) -> None:
        self.heard.append("files")

    def notify_arrived(self, fill: Fill) -> None:
        self.heard.append("arrived")

    def notify_refused(self, fill: Fill, failure: FillFailed) -> None:
        self.heard.append(f"refused: {failure.text}")

    def notify_evicted(self, fill: Fill) -> None:
        self.heard.append("evicted")

    def settled(self, failure: FillFailed | None) -> None:
        self.heard.append(f"want: {failure.text if failure else 'here'}")


def test_f12_a_client_hears_that_the_blob_is_gone_before_its_own_want_fails() -> None:
    # The other way round a client that asks again at once gets the old handle, and its failure.
    async def scenario() -> None:
        upstreams = Upstreams(asyncio.get_running_loop())
        fill = upstreams.fill()
        client = Told()
        fill.listeners.add(client)
        for number in range(2):
            fill.add_want(Want(number, None, 0, True, number, client.settled))
        fill.withdraw(FillFailed("upstream", "changed"))
        assert client.heard == ["refused: changed", "want: changed", "want: changed"]
        assert not fill.wants

    asyncio.run(scenario())
