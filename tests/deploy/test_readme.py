"""What the README says of keys, files, commands and clients' settings is so."""

import re
import tomllib
from functools import reduce
from pathlib import Path

import pytest
import yaml

from headstart.command.configuration import Configuration
from headstart.command.main import build, installed_programs
from proxy.command import announcement
from proxy.control.verdict import VERDICTS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SHIPPED = yaml.safe_load((ROOT / "config.yaml").read_text())
KEYS = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| `([^`]+)` \|", README, flags=re.MULTILINE)
COMMANDS = re.findall(r"^\$ (?:.*\.venv/bin/)headstart (\w+)", README, flags=re.MULTILINE)


@pytest.mark.parametrize(("key", "default"), KEYS)
def test_a_key_has_the_default_that_the_readme_says(key: str, default: str) -> None:
    shipped = reduce(lambda section, name: section[name], key.split("."), SHIPPED)
    if key == "cache.stripes":
        (shipped,) = (stripe["path"] for stripe in shipped)
    assert str(shipped) == default


def test_the_readme_has_a_table_of_keys() -> None:
    assert len(KEYS) >= 8


def test_links_lead_to_what_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_what_make_run_prints_is_what_the_readme_shows() -> None:
    configuration = Configuration.load(ROOT / "config.yaml", environment={})
    shown = "\n".join(announcement(configuration)).rstrip()
    home = str(Path("~").expanduser())
    assert shown.replace(home, "/home/dev") in README


def test_commands_of_make_and_headstart_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"`make (\w+)`", README):
        assert target in targets
    assert COMMANDS
    registered = build(installed_programs()).registered_commands
    for command in COMMANDS:
        assert command in [each.name for each in registered]


def test_every_verdict_is_explained() -> None:
    for verdict in VERDICTS:
        assert f"`{verdict}`" in README


def test_the_hosts_file_of_the_readme_is_the_shipped_one() -> None:
    found = re.search(r'^\[host\."[^`]*?(?=\n\n)', README, flags=re.MULTILINE)
    assert found is not None
    shipped = ROOT / "deploy/containerd/certs.d/_default/hosts.toml"
    assert tomllib.loads(found[0]) == tomllib.loads(shipped.read_text())
