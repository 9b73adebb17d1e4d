"""What a command prints: for a person, or as JSON for a program."""

import json
import sys
from collections.abc import Mapping
from typing import TextIO

import yaml


class Output:
    """Where a command prints; ``as_json`` when the user asked for JSON."""

    def __init__(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        self.as_json = as_json
        self._stream = stream

    @property
    def stream(self) -> TextIO:
        """Standard output unless another stream was given."""
        return self._stream or sys.stdout

    def show(self, value: object, text: str) -> None:
        """Print one result: ``value`` as a line of JSON, or ``text`` for a person."""
        print(json.dumps(value) if self.as_json else text, file=self.stream, flush=True)

    def show_mapping(self, value: Mapping[str, object], title: str) -> None:
        """Print a nested mapping: JSON, or YAML below a comment with ``title``."""
        text = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=100)
        self.show(value, f"# {title}\n{text}".rstrip("\n"))

    def note(self, text: str) -> None:
        """Print a line that is no result; kept away from JSON on standard output."""
        print(text, file=sys.stderr if self.as_json else self.stream, flush=True)


def complain(text: str) -> None:
    """Print an error in one line to standard error."""
    print(f"headstart: {' '.join(text.split())}", file=sys.stderr, flush=True)
