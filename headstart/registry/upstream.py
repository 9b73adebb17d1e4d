"""What is configured about an upstream: where it is, who may use it, how long it may take."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Access = Literal["shared", "passthrough", "anonymous"]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """When a wait for the upstream is given up: seconds, and bytes a second for ``stall_rate``.

    ``connect`` is until the connection stands, ``first_byte`` from the request to the head of the
    answer, ``stall`` how long it may stay below ``stall_rate``, ``job`` the whole of a job.
    """

    connect: float = 5.0
    first_byte: float = 15.0
    stall: float = 20.0
    stall_rate: int = 64 * 1024
    job: float | None = None

    @property
    def total(self) -> float:
        """Seconds of a whole call of the control plane, retries and tokens included."""
        return self.first_byte + self.stall


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a user name and a password come from; exactly one is set.

    ``file`` holds ``USER:PASSWORD`` in its first line or JSON with ``username`` and ``password``,
    ``helper`` names ``docker-credential-HELPER``, ``docker_config`` is a docker ``config.json``.
    """

    file: Path | None = None
    helper: str | None = None
    docker_config: Path | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """One registry of the allowlist.

    ``host`` is the registry as in image names, ``url`` where it is really reached,
    ``connection_rate`` bytes a second of one connection (None: unlimited), ``max_connections``
    None lets the scheduler choose, ``realm_hosts`` are further hosts that may be given the
    credentials in exchange for a token.
    """

    host: str
    url: str
    ca_file: Path | None = None
    credentials: Credentials | None = None
    access: Access = "anonymous"
    allow_private: bool = False
    max_connections: int | None = None
    connection_rate: int | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    realm_hosts: tuple[str, ...] = ()
