"""Which certificates are trusted: those of this system, and the upstream's own CA file."""

import functools
import ssl
from pathlib import Path

from headstart.registry.errors import UpstreamUnavailable

# Interpreters that were built elsewhere look for the system's store where there is none.
_SYSTEM_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """A client's context that verifies certificates and names. Raises UpstreamUnavailable.

    ``ca_file`` is trusted beside the system's authorities: a private registry's realm and object
    storage may well have public certificates.
    """
    if ca_file is None:
        return _shared_context()
    context = _system_context()
    try:
        context.load_verify_locations(cafile=str(ca_file))
    except OSError as error:  # ssl.SSLError is one, without an errno of the system
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise UpstreamUnavailable(
            f"ca_file {ca_file}: {reason}; name a readable PEM file", transient=False
        ) from None
    return context


@functools.cache
def _shared_context() -> ssl.SSLContext:
    """Made once, since reading the system's store takes tens of milliseconds."""
    return _system_context()


def _system_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and ssl.get_default_verify_paths().cafile is None:
        bundle = next((path for path in _SYSTEM_BUNDLES if path.exists()), None)
        if bundle is not None:
            context.load_verify_locations(cafile=str(bundle))
    return context
