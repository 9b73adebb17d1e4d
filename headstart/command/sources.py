"""Where a configuration comes from: one YAML file and the environment, with their places.

Nothing is checked here beyond what YAML itself asks for; the models do that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from headstart.command.complaint import ConfigurationError, Key, dotted

SEARCH = (Path("config.yaml"), Path("/etc/headstart/config.yaml"))
"""Files that are looked for, in order, when none is named."""

PREFIX = "HEADSTART_"
LEVELS = "__"  # between the parts of a key, which may hold single underscores themselves


@dataclass(slots=True)
class Sources:
    """What was read (``values``), and where each key stands."""

    values: dict[str, object]
    file: Path | None
    lines: dict[Key, int] = field(default_factory=dict)
    variables: dict[Key, str] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """Where relative paths start: the file's directory, else the current one."""
        return Path.cwd() if self.file is None else self.file.absolute().parent

    def place(self, key: Key) -> str | None:
        """Say where ``key`` or the nearest key above it stands; None for a default."""
        for length in range(len(key), 0, -1):
            above = key[:length]
            if above in self.variables:
                return f"environment variable {self.variables[above]}"
            if above in self.lines:
                return f"{self.file}, line {self.lines[above]}"
        return None if self.file is None else str(self.file)


def find_file(named: Path | None, search: Sequence[Path] = SEARCH) -> Path | None:
    """The configuration file to read: ``named``, else the first of ``search`` that exists."""
    if named is not None:
        return named
    return next((path for path in search if path.exists()), None)


def read_sources(file: Path | None, environment: Mapping[str, str]) -> Sources:
    """Read ``file`` (None for none) and lay the environment over it.

    Raises :class:`ConfigurationError`.
    """
    sources = Sources({}, None) if file is None else _read_file(file)
    for variable in sorted(environment):
        if variable.startswith(PREFIX) and LEVELS in variable:
            key = tuple(variable.removeprefix(PREFIX).lower().split(LEVELS))
            _lay_over(sources, key, variable, environment[variable])
    return sources


def _read_file(file: Path) -> Sources:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            "--config",
            repr(str(file)),
            f"is not UTF-8 text (byte {error.start})",
            "write it as UTF-8",
        ) from error
    except OSError as error:
        raise ConfigurationError(
            "--config", repr(str(file)), f"cannot be read: {error.strerror}", "name a readable file"
        ) from error
    sources = Sources({}, file)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return sources
        _note_lines(node, (), sources, set())
        values = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _yaml_complaint(file, error) from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigurationError(
            "",
            None,
            f"holds a {type(values).__name__}",
            "write sections such as mirror:",
            str(file),
        )
    sources.values = values
    return sources


def _yaml_complaint(file: Path, error: yaml.YAMLError) -> ConfigurationError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = str(file) if mark is None else f"{file}, line {mark.line + 1}, column {mark.column + 1}"
    problem = re.sub(r"\s+", " ", f"is not YAML: {problem}")
    return ConfigurationError("", None, problem, "mend the line", place)


def _note_lines(node: yaml.Node, key: Key, sources: Sources, seen: set[int]) -> None:
    """Remember the line of every key below ``node``; refuse a key that stands twice."""
    if id(node) in seen:  # an alias, possibly of something that contains it
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            sources.lines[(*key, position)] = item.start_mark.line + 1
            _note_lines(item, (*key, position), sources, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            continue
        below = (*key, name.value)
        line = name.start_mark.line + 1
        if below in sources.lines:
            raise ConfigurationError(
                dotted(below),
                None,
                f"stands twice, first in line {sources.lines[below]}",
                "remove one",
                f"{sources.file}, line {line}",
            )
        sources.lines[below] = line
        _note_lines(value, below, sources, seen)


def _lay_over(sources: Sources, key: tuple[str, ...], variable: str, text: str) -> None:
    """Set one key; the word ``null`` is YAML's null."""
    if not all(key):
        raise ConfigurationError(
            variable, None, "names no key", f"write {PREFIX}SECTION{LEVELS}KEY"
        )
    section = sources.values
    for name in key[:-1]:
        below = section.get(name)
        # A copy: an alias of YAML would carry the value into other sections.
        below = dict(below) if isinstance(below, dict) else {}
        section[name] = below
        section = below
    section[key[-1]] = None if text == "null" else text
    sources.variables[key] = variable
