"""The command ``headstart``: options, the programs' commands, errors in one line.

The programs bring their commands by entry points of the group ``headstart.commands``: each value
is a callable that takes the :class:`typer.Typer` and registers on it.

Exit status: 0 done, 1 failed, 2 bad usage or bad configuration.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

import typer

from headstart import __version__
from headstart.command.complaint import ConfigurationError
from headstart.command.invocation import CommandFailed, Invocation
from headstart.command.output import Output, complain
from headstart.command.sources import find_file
from headstart.content.errors import InvalidInput
from headstart.registry.errors import RegistryError
from headstart.store.errors import StoreError

GROUP = "headstart.commands"
DONE, FAILED, BAD_USAGE = 0, 1, 2

_FLAGS = ("-v", "--verbose", "--json")
_WITH_VALUE = "--config"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"headstart {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file; else ./config.yaml, /etc/headstart/config.yaml."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Tracebacks with errors.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Results as JSON.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="The version."),
    ] = False,
) -> None:
    """Images where they run, before they are asked for: a registry mirror for every node."""
    context.obj = Invocation(config, verbose, Output(as_json=json))
    _help_without_command(context)


def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(BAD_USAGE)


def _check(context: typer.Context) -> None:
    """Check the configuration and print what is in force; exit status 2 when it is bad."""
    invocation = Invocation.of(context)
    configuration = invocation.configuration()
    for unreadable in configuration.unreadable_files():
        raise unreadable
    file = find_file(invocation.config_file)
    title = "built-in defaults" if file is None else str(file)
    invocation.output.show_mapping(configuration.plain(), f"in force: {title} and the environment")


def build(programs: Sequence[EntryPoint]) -> typer.Typer:
    """The whole command line, with the commands of ``programs``."""
    app = _group()
    app.callback()(_options)
    configuration = _group()
    configuration.callback(help="The configuration.")(_help_without_command)
    configuration.command("check")(_check)
    app.add_typer(configuration, name="config")
    for program in programs:
        _register(app, program)
    return app


def _group() -> typer.Typer:
    return typer.Typer(
        invoke_without_command=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )


def _register(app: typer.Typer, program: EntryPoint) -> None:
    """Let a program register; one that cannot be loaded must not take the others along."""
    try:
        program.load()(app)
    except Exception as error:
        reason = f"{program.value} could not be loaded: {type(error).__name__}: {error}"

        def unavailable(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
            raise CommandFailed(f"{program.name} is not available: {reason}")

        app.command(program.name, hidden=True, context_settings={"ignore_unknown_options": True})(
            unavailable
        )


def installed_programs() -> list[EntryPoint]:
    """The entry points of this installation, each once, by name."""
    return sorted(set(entry_points(group=GROUP)), key=lambda point: (point.name, point.value))


def options_first(arguments: Sequence[str]) -> list[str]:
    """Move the options that every command has to the front; nothing after ``--`` moves."""
    front: list[str] = []
    rest: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument == "--":
            return [*front, *rest, argument, *remaining]
        if argument in _FLAGS or argument.startswith(f"{_WITH_VALUE}="):
            front.append(argument)
        elif argument == _WITH_VALUE:
            front.append(argument)
            front.extend(remaining[:1])
            del remaining[:1]
        else:
            rest.append(argument)
    return [*front, *rest]


def run(arguments: Sequence[str], programs: Sequence[EntryPoint]) -> int:
    """Run one call; return its exit status. Errors are one line on standard error."""
    ordered = options_first(arguments)
    try:
        status = build(programs)(ordered, prog_name="headstart", standalone_mode=False)
    except (ConfigurationError, InvalidInput) as error:
        return _complain(error, str(error), BAD_USAGE, ordered)
    except typer.TyperException as error:
        return _complain(error, error.format_message(), error.exit_code, ordered)
    except (CommandFailed, StoreError, RegistryError) as error:
        return _complain(error, str(error), FAILED, ordered)
    except typer.Abort:
        return FAILED
    except BrokenPipeError:
        # Whoever read has gone; what Python flushes at its end must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        text = f"{type(error).__name__}: {error}; -v shows where"
        return _complain(error, text, FAILED, ordered)
    if status in (DONE, BAD_USAGE):
        return int(status)
    return DONE if status is None else FAILED


def _complain(error: Exception, text: str, status: int, ordered: Sequence[str]) -> int:
    options = ordered[: ordered.index("--")] if "--" in ordered else ordered
    if "-v" in options or "--verbose" in options:
        traceback.print_exception(error)
    complain(text)
    return status


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:], installed_programs()))


if __name__ == "__main__":
    main()
