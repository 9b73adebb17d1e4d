"""What can go wrong with an upstream. No message holds a token, a password or a URL's query.

::

    RegistryError
      UpstreamMissing         the upstream says that it does not have it
      UpstreamDenied          the upstream does not let us (or this client) have it
        CredentialsUnusable   the configured credentials cannot be read
        PushRefused           the upstream does not take what is pushed
      UpstreamThrottled       the upstream asks for a pause
      UpstreamUnavailable     network, DNS, TLS, 5xx
      UpstreamDeadline        a configured deadline has passed
      UpstreamProtocol        an answer that no registry should give
      RefusedTarget           a redirect, realm or address that we do not follow
"""


class RegistryError(Exception):
    """Anything about an upstream; ``transient`` errors may pass when the same is asked again."""

    transient = False


class UpstreamMissing(RegistryError):
    """The upstream says that it does not have what was asked for."""


class UpstreamDenied(RegistryError):
    """The upstream refuses the credentials, or asks for some where there are none."""


class CredentialsUnusable(UpstreamDenied):
    """The configured credentials cannot be read; the message names the source and the remedy."""


class PushRefused(UpstreamDenied):
    """The upstream does not take what is pushed; the message repeats what it says of it."""


class UpstreamThrottled(RegistryError):
    """The upstream asks for a pause of ``retry_after`` seconds."""

    transient = True

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class UpstreamUnavailable(RegistryError):
    """Network, DNS, TLS or a 5xx; not ``transient`` where waiting does not help."""

    def __init__(self, text: str, *, transient: bool = True) -> None:
        super().__init__(text)
        self.transient = transient


class UpstreamDeadline(RegistryError):
    """A deadline of the configuration has passed.

    ``key`` is its name below ``deadlines``, ``value`` what is configured (seconds; bytes a second
    for ``stall_rate``), ``measured`` says what was seen instead.
    """

    def __init__(self, key: str, value: float, measured: str) -> None:
        unit = " B/s" if key == "stall_rate" else "s"
        super().__init__(f"{measured} (deadlines.{key}: {value:g}{unit})")
        self.key = key
        self.value = value
        self.measured = measured


class UpstreamProtocol(RegistryError):
    """An answer that is wrong in itself; ``transient`` where a repetition may be right."""

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class RefusedTarget(RegistryError):
    """A redirect, a realm or an address that is not followed."""
