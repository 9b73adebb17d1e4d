"""What every command gets: the options that stand before or after its name."""

from dataclasses import dataclass, field
from pathlib import Path

import typer

from headstart.command.configuration import Configuration
from headstart.command.output import Output


class CommandFailed(Exception):
    """A command did not do what it was asked: one line with what, the value and the remedy."""


@dataclass(slots=True)
class Invocation:
    """The options of one call of ``headstart``."""

    config_file: Path | None = None
    verbose: bool = False
    output: Output = field(default_factory=Output)
    _configuration: Configuration | None = None

    @classmethod
    def of(cls, context: typer.Context) -> "Invocation":
        """The invocation that a command runs in."""
        found = context.find_object(cls)
        if found is None:
            raise TypeError("a command was called outside of headstart's own command line")
        return found

    def configuration(self) -> Configuration:
        """The configuration, read at the first call. Raises ConfigurationError."""
        if self._configuration is None:
            self._configuration = Configuration.load(self.config_file)
        return self._configuration
