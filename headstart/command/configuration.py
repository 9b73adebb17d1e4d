"""The configuration: everything that ``config.yaml`` and the environment may say, checked once.

:meth:`Configuration.load` reads both; what it refuses is :class:`ConfigurationError`, one line
that names the key, the value, the remedy and where the value stands.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from headstart.command.complaint import BadValue, ConfigurationError, complaint
from headstart.command.sections import (
    DOCKER_CONFIG,
    DOCKER_HUB,
    Cache,
    Control,
    CredentialsSource,
    Fetch,
    Mirror,
    Mount,
    Prefetch,
    Section,
    UpstreamKeys,
)
from headstart.command.sources import PREFIX, Sources, find_file, read_sources
from headstart.command.values import RegistryHost, loopback
from headstart.registry.upstream import Credentials, Deadlines, Upstream

__all__ = ["Configuration", "ConfigurationError"]

DOCKER_HUB_URL = "https://registry-1.docker.io"


def _default_upstreams() -> dict[str, UpstreamKeys]:
    return {DOCKER_HUB: UpstreamKeys(), "ghcr.io": UpstreamKeys()}


class Configuration(Section):
    """Everything that ``config.yaml`` may say; attributes are named as its keys.

    The one exception: the section ``upstreams`` is the attribute ``upstream_keys``, since
    :meth:`upstreams` gives what the programs use.
    """

    mirror: Mirror = Mirror()
    control: Control = Control()
    cache: Annotated[Cache, Field(default=None)]  # null is an empty section
    upstream_keys: Annotated[dict[RegistryHost, UpstreamKeys], Field(min_length=1)] = Field(
        default_factory=_default_upstreams, alias="upstreams"
    )
    fetch: Fetch = Fetch()
    mount: Mount = Mount()
    prefetch: Prefetch = Prefetch()

    @model_validator(mode="before")
    @classmethod
    def _drop_absent_default_upstream(cls, value: object) -> object:
        """Without docker.io among the upstreams nothing is the default unless it is named."""
        if not isinstance(value, dict) or not isinstance(value.get("upstreams"), dict):
            return value
        mirror = value.get("mirror") or {}
        if DOCKER_HUB in value["upstreams"] or not isinstance(mirror, dict):
            return value
        return {**value, "mirror": {"default_upstream": None, **mirror}}

    @field_validator("upstream_keys")
    @classmethod
    def _check_upstreams(cls, upstreams: dict[str, UpstreamKeys]) -> dict[str, UpstreamKeys]:
        for host, keys in upstreams.items():
            url = _upstream_url(host, keys)
            if loopback(url) and not keys.allow_private:
                raise BadValue(
                    f"has the url {url}, which is this machine",
                    "add allow_private: true",
                    below=(host,),
                )
        return upstreams

    @model_validator(mode="after")
    def _check_default_upstream(self) -> Self:
        default = self.mirror.default_upstream
        if default is not None and default not in self.upstream_keys:
            raise BadValue(
                f"names {default}, which is not among the upstreams",
                f"name one of {', '.join(self.upstream_keys)}, or null",
                below=("mirror", "default_upstream"),
            )
        return self

    @classmethod
    def load(
        cls, path: Path | None = None, *, environment: Mapping[str, str] | None = None
    ) -> "Configuration":
        """Read ``path``, else the first file that :func:`find_file` finds, else the defaults.

        ``HEADSTART_SECTION__KEY`` variables win over the file. Raises ConfigurationError.
        """
        variables = os.environ if environment is None else environment
        _check_variables(variables)
        return cls.read(read_sources(find_file(path), variables))

    @classmethod
    def read(cls, sources: Sources) -> "Configuration":
        """Check what was read. Raises ConfigurationError."""
        try:
            return cls.model_validate(sources.values, context={"base": sources.base})
        except ValidationError as refusal:
            found = complaint(refusal, sources.place)
        # Outside of the handler: pydantic's own words repeat values, secret ones too.
        raise found

    def upstreams(self) -> dict[str, Upstream]:
        """The allowlist as the registry client takes it, by registry host."""
        return {host: self._upstream(host, keys) for host, keys in self.upstream_keys.items()}

    def _upstream(self, host: str, keys: UpstreamKeys) -> Upstream:
        own = keys.deadlines.model_dump(exclude_none=True)
        connections = keys.max_connections or self.fetch.max_connections
        return Upstream(
            host=host,
            url=_upstream_url(host, keys),
            ca_file=keys.ca_file,
            credentials=_credentials(keys.credentials),
            access=keys.access,
            allow_private=keys.allow_private,
            max_connections=None if connections == "auto" else connections,
            connection_rate=keys.connection_rate,
            deadlines=Deadlines(**{**self.fetch.deadlines.model_dump(), **own}),
            realm_hosts=keys.realm_hosts,
        )

    def control_socket(self) -> Path:
        """The socket of the control API: the configured one, else beside the cache."""
        return self.control.socket or self.cache.stripes[0].path / "run" / "control.sock"

    def unreadable_files(self) -> Iterator[ConfigurationError]:
        """A complaint for every named file that this user cannot read."""
        named = {"control.token_file": self.control.token_file}
        if self.mirror.tls is not None:
            named["mirror.tls.certificate"] = self.mirror.tls.certificate
            named["mirror.tls.key"] = self.mirror.tls.key
        for host, keys in self.upstream_keys.items():
            named[f"upstreams.{host}.ca_file"] = keys.ca_file
            if keys.credentials is not None:
                named[f"upstreams.{host}.credentials.file"] = keys.credentials.file
                docker = keys.credentials.docker_config
                named[f"upstreams.{host}.credentials.{DOCKER_CONFIG}"] = docker
        for key, path in named.items():
            if path is not None and not os.access(path, os.R_OK):
                problem = "cannot be read" if path.exists() else "does not exist"
                yield ConfigurationError(key, repr(str(path)), problem, "name a readable file")

    def plain(self) -> dict[str, Any]:
        """Everything as the file would say it, text with units; loading it gives the same.

        What an upstream takes over from ``fetch`` stands with the upstream too.
        """
        written: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        for host, keys in self.upstream_keys.items():
            upstream = written["upstreams"][host]
            own = {name: given for name, given in upstream["deadlines"].items() if given}
            upstream["url"] = _upstream_url(host, keys)
            upstream["max_connections"] = (
                keys.max_connections or written["fetch"]["max_connections"]
            )
            upstream["deadlines"] = {**written["fetch"]["deadlines"], **own}
        return written


def _upstream_url(host: str, keys: UpstreamKeys) -> str:
    return keys.url or (DOCKER_HUB_URL if host == DOCKER_HUB else f"https://{host}")


def _credentials(source: CredentialsSource | None) -> Credentials | None:
    if source is None:
        return None
    return Credentials(file=source.file, helper=source.helper, docker_config=source.docker_config)


def _check_variables(variables: Mapping[str, str]) -> None:
    """Refuse a variable that was meant for a key but has one underscore between the levels."""
    for section, field in Configuration.model_fields.items():
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, Section)):
            continue
        for key in model.known_keys():
            meant = f"{section}_{key}".upper()
            if PREFIX + meant in variables:
                raise ConfigurationError(
                    PREFIX + meant,
                    None,
                    "is no known variable",
                    f"did you mean {PREFIX}{section.upper()}__{key.upper()}?",
                )
