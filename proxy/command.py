"""The mirror's commands: ``headstart serve`` and ``headstart warm``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from headstart.command.configuration import Configuration
from headstart.command.invocation import Invocation
from headstart.command.output import complain
from headstart.command.sources import find_file
from headstart.command.values import TcpAddress, UnixAddress
from proxy.launcher import replace_process

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def register(app: typer.Typer) -> None:
    """Register the commands, as the entry point of the group ``headstart.commands``."""
    app.command("serve")(_serve)
    app.command("warm")(_warm)


def _serve(context: typer.Context) -> None:
    """Run the mirror and its filler until Ctrl-C or SIGTERM."""
    invocation = Invocation.of(context)
    configuration = invocation.configuration()
    for unreadable in configuration.unreadable_files():
        raise unreadable
    if os.geteuid() == 0:
        complain("runs as root, which it has no need for; deploy/systemd has a user for it")
    for line in announcement(configuration):
        invocation.output.note(line)
    replace_process(children(find_file(invocation.config_file)))


def children(file: Path | None) -> dict[str, list[str]]:
    """The command lines of the two processes, the filler first: the mirror needs it."""
    options = [] if file is None else ["--config", str(file.absolute())]
    # -P: what lies in the current directory is no part of the program.
    return {
        "filler": [sys.executable, "-P", "-m", "proxy.fill.process", *options],
        "mirror": [sys.executable, "-P", "-m", "proxy.mirror", *options],
    }


def announcement(configuration: Configuration) -> list[str]:
    """What a user needs to know next: where the mirror is, and how containerd comes to use it."""
    scheme = "http" if configuration.mirror.tls is None else "https"
    urls = [_url(scheme, address) for address in configuration.mirror.listen]
    lines = [f"headstart: mirror at {', '.join(urls)}"]
    lines += [f"headstart: cache in {stripe.path}" for stripe in configuration.cache.stripes]
    lines.append(f"headstart: control socket {configuration.control_socket()}")
    reachable = next((url for url in urls if not url.startswith("unix:")), None)
    if reachable is not None:
        lines += [
            "headstart: for containerd, /etc/containerd/certs.d/_default/hosts.toml:",
            "",
            f'[host."{reachable}"]',
            'capabilities = ["pull", "resolve"]',
            'dial_timeout = "1s"',
            "",
        ]
    return lines


def _url(scheme: str, address: TcpAddress | UnixAddress) -> str:
    if isinstance(address, UnixAddress):
        return str(address)
    host = _EVERY_ADDRESS.get(address.host)
    return f"{scheme}://{address}" if host is None else f"{scheme}://{host}:{address.port}"


def _warm(
    context: typer.Context,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Names such as ghcr.io/team/app:1.")
    ],
    platform: Annotated[
        str | None, typer.Option(help="OS/ARCHITECTURE, or all; else this node's.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="auto, list, landmark, all or none (manifests only).")
    ] = "auto",
    priority: Annotated[
        str, typer.Option(help="warm, or background (after it), or prefetch (before it).")
    ] = "warm",
    deadline: Annotated[
        str | None, typer.Option(help="Give up after a duration such as 10m.")
    ] = None,
    ready: Annotated[
        bool, typer.Option("--ready", help="Make the layers too that the mount starts from.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
) -> None:
    """Bring images into the cache of the mirror that runs, and show how far they are."""
    from proxy.warm.command import warm  # httpx and rich: half a second that others need not wait

    invocation = Invocation.of(context)
    asked: dict[str, object] = {"images": images, "policy": policy, "priority": priority}
    if platform is not None:
        asked["platform"] = platform
    if deadline is not None:
        asked["deadline"] = deadline
    if ready:
        asked["ready"] = True
    status = warm(
        asked, invocation.configuration().control_socket(), invocation.output, detach=detach
    )
    raise typer.Exit(status)
