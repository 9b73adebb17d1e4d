"""The sections of ``config.yaml``: frozen models of their keys, defaults and limits.

Sizes are bytes, durations are seconds, paths are absolute. The reasons for the defaults stand in
the shipped ``config.yaml``.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from headstart.command.complaint import BadValue, nearest
from headstart.command.values import (
    Background,
    Connections,
    Duration,
    FilePath,
    Listen,
    Percent,
    PositiveDuration,
    Rate,
    RegistryHost,
    RepositoryPattern,
    Share,
    Size,
    SizeOrShare,
    TcpAddress,
    Url,
    split_list,
)

KIB = 1024
MIB = 1024 * KIB
UNIT_SIZE = 256 * KIB  # store.geometry has the same; a configuration needs no store
REQUEST_SIZES = (1 * MIB, 512 * MIB)
LARGEST_EXTENT = 128 * UNIT_SIZE  # the map of an extent has 128 unit bits
SMALLEST_WINDOW = 4 * MIB  # one range of a layer inflated in stream order

DOCKER_HUB = "docker.io"
DOCKER_CONFIG = "docker-config"


class Section(BaseModel):
    """A mapping of the file; an empty one (YAML's null) is all defaults."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, populate_by_name=True
    )

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: object) -> object:
        if value is None:
            return {}
        if isinstance(value, dict):
            known = cls.known_keys()
            for key in value:
                if key not in known and key not in cls.model_fields:
                    raise BadValue("is no known key", nearest(str(key), known), below=(str(key),))
        return value

    @classmethod
    def known_keys(cls) -> list[str]:
        """The keys as they stand in the file."""
        return [field.alias or name for name, field in cls.model_fields.items()]


class Tls(Section):
    """The certificate chain and the key that the mirror listens with, both PEM."""

    certificate: FilePath
    key: FilePath


class Mirror(Section):
    """Where clients reach the mirror and how it treats tags."""

    listen: Annotated[tuple[Listen, ...], BeforeValidator(split_list), Field(min_length=1)] = (
        TcpAddress("127.0.0.1", 5050),
    )
    tls: Tls | None = None
    default_upstream: RegistryHost | None = DOCKER_HUB
    tag_ttl: Duration = 0.0
    stale_window: Duration = 24 * 3600.0


class Control(Section):
    """Who may call the control API beside loopback peers."""

    socket: FilePath | None = None
    token_file: FilePath | None = None


class Stripe(Section):
    """One directory of the cache."""

    path: FilePath

    @model_validator(mode="before")
    @classmethod
    def _read_plain_path(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


class Cache(Section):
    """Where bytes are kept and how many."""

    keep: Literal["auto", "blob", "layer", "both"] = "auto"
    stripes: Annotated[
        tuple[Stripe, ...], BeforeValidator(split_list), Field(min_length=1, max_length=255)
    ] = Field(default="~/.cache/headstart", validate_default=True)
    max_size: SizeOrShare = Percent(80)
    low_water: Share = Percent(90)
    extent_size: Size = LARGEST_EXTENT

    @field_validator("stripes")
    @classmethod
    def _check_stripes(cls, stripes: tuple[Stripe, ...]) -> tuple[Stripe, ...]:
        paths = [stripe.path for stripe in stripes]
        for path in paths:
            if paths.count(path) > 1:
                raise BadValue(f"names {path} twice", "give every stripe its own directory")
            if any(path in other.parents for other in paths):
                raise BadValue(f"has a stripe below {path}", "give stripes separate directories")
        return stripes

    @field_validator("extent_size")
    @classmethod
    def _check_extent_size(cls, size: int) -> int:
        if size % UNIT_SIZE or size > LARGEST_EXTENT:
            raise BadValue("is no multiple of 256KiB up to 32MiB", "write 32MiB")
        return size


class DeadlineKeys(Section):
    """Deadlines of one upstream; what is absent is as in ``fetch.deadlines``."""

    connect: PositiveDuration | None = None
    first_byte: PositiveDuration | None = None
    stall: PositiveDuration | None = None
    stall_rate: Rate | None = None
    job: PositiveDuration | None = None


class FetchDeadlines(Section):
    """When a fetch is given up: seconds, and bytes per second for ``stall_rate``."""

    connect: PositiveDuration = 5.0
    first_byte: PositiveDuration = 15.0
    stall: PositiveDuration = 20.0
    stall_rate: Rate = 64 * KIB
    job: PositiveDuration | None = None


class CredentialsSource(Section):
    """Where a user name and a password come from; exactly one is set."""

    file: FilePath | None = None
    helper: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    docker_config: FilePath | None = Field(default=None, alias=DOCKER_CONFIG)

    @model_validator(mode="before")
    @classmethod
    def _read_word(cls, value: object) -> object:
        return {DOCKER_CONFIG: "~/.docker/config.json"} if value == DOCKER_CONFIG else value

    @model_validator(mode="after")
    def _check_exactly_one(self) -> Self:
        named = [self.file, self.helper, self.docker_config]
        if sum(source is not None for source in named) != 1:
            raise BadValue(
                "names not exactly one source", "write one of file, helper and docker-config"
            )
        return self


class UpstreamKeys(Section):
    """What the configuration says about one registry."""

    url: Url | None = None
    ca_file: FilePath | None = None
    credentials: CredentialsSource | None = None
    access: Literal["shared", "passthrough", "anonymous"] = "anonymous"
    allow_private: bool = False
    realm_hosts: Annotated[tuple[RegistryHost, ...], BeforeValidator(split_list)] = ()
    max_connections: Connections | None = None
    connection_rate: Rate | None = None
    deadlines: DeadlineKeys = DeadlineKeys()

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        if self.credentials is not None and self.access != "shared":
            raise BadValue(
                f"has credentials and access: {self.access}",
                "write access: shared, which lets every client of the mirror use them",
            )
        if self.ca_file is not None and self.url is not None and self.url.startswith("http:"):
            raise BadValue("has a ca_file and an http url", "write an https url")
        return self


class Fetch(Section):
    """How bytes are fetched."""

    request_size: Size = 32 * MIB
    on_demand_size: Size = UNIT_SIZE
    max_connections: Connections = "auto"
    reissue: Literal["auto", "disabled"] = "auto"
    window: Size = 96 * MIB
    deadlines: FetchDeadlines = FetchDeadlines()

    @field_validator("request_size")
    @classmethod
    def _check_request_size(cls, size: int) -> int:
        least, most = REQUEST_SIZES
        if size % UNIT_SIZE or not least <= size <= most:
            raise BadValue("is no multiple of 256KiB from 1MiB to 512MiB", "write 32MiB")
        return size

    @field_validator("on_demand_size")
    @classmethod
    def _check_on_demand_size(cls, size: int) -> int:
        if size % UNIT_SIZE or size > REQUEST_SIZES[1]:
            raise BadValue("is no multiple of 256KiB", "write 256KiB")
        return size

    @field_validator("window")
    @classmethod
    def _check_window(cls, size: int) -> int:
        if size < SMALLEST_WINDOW:
            raise BadValue("is less than 4MiB", "write 96MiB")
        return size

    @model_validator(mode="after")
    def _check_sizes_together(self) -> Self:
        if self.on_demand_size > self.request_size:
            raise BadValue(
                "has an on_demand_size above its request_size", "write on_demand_size: 256KiB"
            )
        return self


class Mount(Section):
    """Where layers are mounted and which."""

    root: FilePath = Path("/var/lib/headstart")
    socket: FilePath = Path("/run/headstart/snapshotter.sock")
    mode: Literal["auto", "file", "loop", "tree"] = "auto"
    read_deadline: Duration = 300.0
    repositories: Annotated[tuple[RepositoryPattern, ...], BeforeValidator(split_list)] = ("*",)


class Prefetch(Section):
    """What is fetched before anybody asks for it."""

    policy: Literal["auto", "list", "landmark", "all", "none"] = "auto"
    background: Background = "auto"
