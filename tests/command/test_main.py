"""The command ``headstart``: options anywhere, one line an error, exit status 0, 1 or 2."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated

import pytest
import typer
import yaml

from headstart import __version__
from headstart.command.invocation import CommandFailed, Invocation
from headstart.command.main import GROUP, options_first, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but what a test writes."""
    for name in [name for name in os.environ if name.startswith("HEADSTART_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def register(app: typer.Typer) -> None:
    """The commands of a program, as an entry point registers them."""

    @app.command()
    def listen(context: typer.Context) -> None:
        """Print where the mirror listens."""
        invocation = Invocation.of(context)
        address = str(invocation.configuration().mirror.listen[0])
        invocation.output.show({"listen": address}, f"listens at {address}")

    @app.command()
    def fail(how: Annotated[str, typer.Argument()]) -> None:
        """Fail in one way or another."""
        failures: dict[str, Exception] = {
            "plainly": CommandFailed("the image\nwas not found; name another"),
            "surprisingly": KeyError("layer"),
            "abruptly": KeyboardInterrupt(),  # type: ignore[dict-item]
        }
        raise failures[how]


class Program(EntryPoint):
    """An entry point whose module is this one, however pytest has imported it."""

    def load(self) -> object:
        """The callable that registers."""
        return register


PROGRAMS = [Program("listen", "tests.command.test_main:register", GROUP)]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], []) == 0
    assert capsys.readouterr().out == f"headstart {__version__}\n"


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["warm", "a", "--json"], ["--json", "warm", "a"]),
        (["warm", "--config", "c.yaml", "a", "-v"], ["--config", "c.yaml", "-v", "warm", "a"]),
        (["warm", "--config=c.yaml"], ["--config=c.yaml", "warm"]),
        (["cat", "ref", "--", "--json"], ["cat", "ref", "--", "--json"]),
        (["warm", "--config"], ["--config", "warm"]),
        ([], []),
    ],
)
def test_options_may_stand_before_and_after_the_command(
    given: list[str], ordered: list[str]
) -> None:
    assert options_first(given) == ordered


@pytest.mark.parametrize(
    "arguments", [["--config", "own.yaml", "listen"], ["listen", "--config", "own.yaml"]]
)
def test_a_programs_command_sees_the_named_configuration(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text("mirror: {listen: 127.0.0.1:7}")
    assert run(arguments, PROGRAMS) == 0
    assert capsys.readouterr().out == "listens at 127.0.0.1:7\n"
    assert run([*arguments, "--json"], PROGRAMS) == 0
    assert json.loads(capsys.readouterr().out) == {"listen": "127.0.0.1:7"}


def test_config_check_prints_what_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("fetch: {window: 64MiB}")
    monkeypatch.setenv("HEADSTART_FETCH__REQUEST_SIZE", "16MiB")
    assert run(["config", "check"], []) == 0
    text = capsys.readouterr().out
    assert text.startswith("# in force: config.yaml and the environment\n")
    fetch = yaml.safe_load(text)["fetch"]
    assert (fetch["window"], fetch["request_size"]) == ("64MiB", "16MiB")
    assert run(["config", "check", "--json"], []) == 0
    assert json.loads(capsys.readouterr().out)["fetch"] == fetch


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fetch: {windwo: 1}", "fetch.windwo: is no known key; did you mean window?"),
        ("mirror: {tls: {certificate: /no/c, key: /no/k}}", "mirror.tls.certificate: '/no/c' does"),
    ],
)
def test_a_bad_configuration_is_one_line_and_2(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert run(["config", "check"], []) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"headstart: {words}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["fail", "plainly"], 1, "headstart: the image was not found; name another"),
        (["fail", "surprisingly"], 1, "headstart: KeyError: 'layer'; -v shows where"),
        (["fail"], 2, "headstart: Missing argument 'HOW'."),
        (["fial", "plainly"], 2, "headstart: No such command 'fial'."),
        (["listen", "--colour"], 2, "headstart: No such option: --colour"),
        (["--config", "absent.yaml", "listen"], 2, "headstart: --config: 'absent.yaml' cannot be"),
    ],
)
def test_an_error_is_one_line_and_its_status(
    arguments: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, PROGRAMS) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.lower().startswith(line.lower())
    assert captured.err.count("\n") == 1


def test_an_interrupt_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fail", "abruptly"], PROGRAMS) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["-v"], ["--verbose"]])
def test_v_adds_the_traceback(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fail", "surprisingly", *flags], PROGRAMS) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("headstart: KeyError")


def test_no_command_prints_the_help_and_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([], PROGRAMS) == 2
    assert "listen" in capsys.readouterr().out
    assert run(["config"], PROGRAMS) == 2
    assert "check" in capsys.readouterr().out


def test_a_program_that_cannot_be_loaded_takes_only_its_own_command_along(
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = [*PROGRAMS, EntryPoint("mount", "no_such_program.command:register", GROUP)]
    assert run(["listen"], programs) == 0
    assert run(["mount", "image", "--detach"], programs) == 1
    error = capsys.readouterr().err
    assert "mount is not available: no_such_program.command:register could not be loaded" in error


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "headstart.command.main", "config", "check"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")
