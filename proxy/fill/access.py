"""Who may have a blob that is here: nobody gets bytes by knowing a digest alone.

With ``access: shared`` and ``anonymous`` an upstream vouches for a blob once, for all clients;
with ``passthrough`` each client's own credentials are held against the registry by HEAD, and the
answer is kept for :data:`GRANTED_SECONDS`. Another upstream that has the blob says nothing.
"""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from headstart.content.digest import Digest
from headstart.registry.client import RegistryClient
from headstart.registry.upstream import Upstream
from proxy.fill.fill import Fill
from proxy.fill.parties import BlobSource

GRANTED_SECONDS = 30.0
"""The mirror keeps what it was granted as long again: a minute together."""
MOST_GRANTS = 4096


def voucher(upstream: Upstream, source: BlobSource) -> str:
    """The name under which the delivery of a blob by this source is remembered."""
    if upstream.access == "passthrough":
        return f"{upstream.host}/{source.repository}"
    return upstream.host


class Access:
    """Grants of the clients' own credentials, and the question to the upstream."""

    def __init__(
        self,
        clients: Mapping[str, RegistryClient],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clients`` by registry host."""
        self._clients = clients
        self._clock = clock
        self._salt = secrets.token_bytes(16)
        self._grants: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def granted(self, upstream: Upstream, source: BlobSource, fill: Fill) -> bool:
        """Whether this source may have the blob, as far as is known without asking."""
        if voucher(upstream, source) not in fill.vouched:
            return False
        if upstream.access != "passthrough":
            return True
        return self._clock() < self._grants.get(self._key(source), 0.0)

    def vouch(self, upstream: Upstream, source: BlobSource, fill: Fill) -> bool:
        """The upstream has delivered, or owned to, the blob; whether that is news."""
        if upstream.access == "passthrough":
            key = self._key(source)
            self._grants[key] = self._clock() + GRANTED_SECONDS
            self._grants.move_to_end(key)
            while len(self._grants) > MOST_GRANTS:
                self._grants.popitem(last=False)
        name = voucher(upstream, source)
        news = name not in fill.vouched
        fill.vouched.add(name)
        return news

    async def ask(self, source: BlobSource, digest: Digest) -> int:
        """The blob's size at the source. Raises RegistryError when it may not be had."""
        client = self._clients[source.upstream]
        return await client.head_blob(source.repository, digest, source.authorization)

    def _key(self, source: BlobSource) -> tuple[str, str, str]:
        credential = hashlib.blake2b((source.authorization or "").encode(), key=self._salt)
        return source.upstream, source.repository, credential.hexdigest()
