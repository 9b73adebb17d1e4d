"""The mount's commands: ``headstart mount``, ``umount``, ``ls``, ``cat`` and ``snapshotter``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headstart.command.invocation import Invocation
from headstart.command.sources import find_file

if TYPE_CHECKING:
    from mount.image.commands import Setting

# What the commands need is imported by the one that runs: no other command waits for it.

_Image = Annotated[str, typer.Argument(metavar="REF", help="A name such as ghcr.io/team/app:1.")]
_Platform = Annotated[str | None, typer.Option(help="OS/ARCHITECTURE; else this node's.")]


def register(app: typer.Typer) -> None:
    """Register the commands, as the entry point of the group ``headstart.commands``."""
    app.command("mount")(_mount)
    app.command("umount")(_umount)
    app.command("ls")(_ls)
    app.command("cat")(_cat)
    app.command("snapshotter")(_snapshotter)


def _mount(
    context: typer.Context,
    image: _Image,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to mount it.")],
    read_write: Annotated[
        bool,
        typer.Option("--read-write", help="Allow changes; they are lost when it is unmounted."),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background.")] = False,
    platform: _Platform = None,
) -> None:
    """Mount an image at a directory until Ctrl-C or headstart umount; nothing is unpacked."""
    from mount.image.background import detach as in_background
    from mount.image.commands import mount_image
    from mount.image.mounted_image import Wanted
    from mount.image.records import ImageRecord

    setting = _setting(context)
    output, target = setting.output, directory.absolute().resolve()
    wanted = Wanted(target, read_write)

    def announce(record: ImageRecord) -> None:
        output.show(record.as_json(), f"{record.image} is mounted at {target}")

    if not detach:
        raise typer.Exit(mount_image(setting, image, wanted, platform, announce))
    said = in_background(
        lambda say: mount_image(
            setting, image, wanted, platform, lambda record: say(record.as_json())
        ),
        setting.root / "run" / "mount.log",
    )
    output.show(said, f"{said['image']} is mounted at {target}; headstart umount ends it")


def _umount(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where it is mounted.")],
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Even while something uses it, which keeps it.")
    ] = False,
) -> None:
    """Unmount an image that headstart mount has mounted."""
    from mount.image.commands import unmount_image

    target = directory.absolute().resolve()
    raise typer.Exit(unmount_image(_setting(context), target, lazy=lazy))


def _ls(
    context: typer.Context,
    image: _Image,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path in the image.")] = "/",
    platform: _Platform = None,
) -> None:
    """List a directory of an image."""
    from mount.image.commands import list_path

    raise typer.Exit(list_path(_setting(context), image, path, platform))


def _cat(
    context: typer.Context,
    image: _Image,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path in the image.")],
    platform: _Platform = None,
) -> None:
    """Print a file of an image."""
    from mount.image.commands import print_file

    raise typer.Exit(print_file(_setting(context), image, path, platform))


def _snapshotter(
    context: typer.Context,
    stop: Annotated[
        bool, typer.Option("--stop", help="End the supervisor of the mount daemon instead.")
    ] = False,
) -> None:
    """Serve containerd as its snapshotter until SIGTERM; images start before they have arrived."""
    from mount.serving import run, stop_supervisor

    configuration = Invocation.of(context).configuration()
    raise typer.Exit(stop_supervisor(configuration) if stop else run(configuration))


def _setting(context: typer.Context) -> "Setting":
    from mount.image.commands import Setting

    invocation = Invocation.of(context)
    file = find_file(invocation.config_file)
    return Setting(invocation.configuration(), file, invocation.output)
