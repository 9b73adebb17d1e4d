"""skopeo with a reference to the mirror itself, for what a :class:`Client` has no words for."""

from pathlib import Path

from tests.parts.accounts import Account
from tests.parts.processes import run


def copy(
    reference: str,
    layout: Path,
    *options: str,
    account: Account | None = None,
    ca_directory: Path | None = None,
) -> None:
    """Copy ``MIRROR/HOST/repository:tag`` to the OCI layout ``layout`` (made).

    ``ca_directory`` holds ``ca.crt`` of whom to trust; without one TLS is neither demanded nor
    verified. ProcessFailed when skopeo fails.
    """
    trust = f"--src-cert-dir={ca_directory}" if ca_directory else "--src-tls-verify=false"
    credentials = f"--src-creds={account}" if account else "--src-no-creds"
    run(
        [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            *options,
            trust,
            credentials,
            f"docker://{reference}",
            f"oci:{layout}:image",
        ],
        deadline=60,
    )
