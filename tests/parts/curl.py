"""curl as a client: single requests with their timing, and many ranges on many connections."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.parts.processes import Completed, run

_DISCARDED = Path("/dev/null")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A finished request: seconds since its start, sizes in bytes; names in lower case."""

    status: int
    headers: Mapping[str, str]
    size: int
    first_byte: float
    seconds: float


def fetch(
    url: str,
    *,
    output: Path = _DISCARDED,
    byte_range: str | None = None,
    headers: Mapping[str, str] | None = None,
    ca_file: Path | None = None,
    limit_rate: int | None = None,
    follow: bool = False,
    deadline: float = 60.0,
) -> Fetched:
    """GET ``url`` into ``output``; ``byte_range`` as in ``0-99``; ``limit_rate`` in bytes/s."""
    completed = run(
        [
            *_command(ca_file, headers),
            *(["--range", byte_range] if byte_range else []),
            *(["--limit-rate", str(limit_rate)] if limit_rate else []),
            *(["--location"] if follow else []),
            "--output",
            output,
            "--write-out",
            "%{json}\n%{header_json}",
            url,
        ],
        deadline=deadline,
    )
    # Both are objects; the second one has line breaks in it.
    decoder = json.JSONDecoder()
    measured, end = decoder.raw_decode(completed.stdout)
    received, _ = decoder.raw_decode(completed.stdout[end:].lstrip())
    return Fetched(
        measured["http_code"],
        {name.lower(): ", ".join(values) for name, values in received.items()},
        measured["size_download"],
        measured["time_starttransfer"],
        measured["time_total"],
    )


def fetch_ranges(
    url: str,
    ranges: Sequence[tuple[int, int]],
    *,
    connections: int,
    directory: Path | None = None,
    ca_file: Path | None = None,
    headers: Mapping[str, str] | None = None,
    deadline: float = 120.0,
) -> Completed:
    """GET half-open ``ranges``, each into ``directory/START``; None discards them.

    At most ``connections`` at a time, kept and used again; ProcessFailed when one is not answered
    with 2xx.
    """
    # In one file: after `next` every option has to be given again, and the list may be long.
    common = ["silent", "show-error", "fail", *([f'cacert = "{ca_file}"'] if ca_file else [])]
    common += [f'header = "{name}: {value}"' for name, value in (headers or {}).items()]
    operations = []
    for start, stop in ranges:
        output = _DISCARDED if directory is None else directory / str(start)
        target = [f'url = "{url}"', f'range = "{start}-{stop - 1}"', f'output = "{output}"']
        operations.append("\n".join([*common, *target]))
    with tempfile.NamedTemporaryFile("w", suffix=".curl") as configuration:
        configuration.write("\nnext\n".join(operations))
        configuration.flush()
        parallel = ["--parallel", "--parallel-immediate", "--parallel-max", str(connections)]
        command = ["curl", "--disable", "--noproxy", "*", *parallel]
        return run([*command, "--config", configuration.name], deadline=deadline)


def _command(ca_file: Path | None, headers: Mapping[str, str] | None) -> list[str]:
    return [
        "curl",
        "--disable",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        *(["--cacert", str(ca_file)] if ca_file else []),
        *(part for name, value in (headers or {}).items() for part in ("-H", f"{name}: {value}")),
    ]
