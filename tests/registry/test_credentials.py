"""Where user names and passwords come from."""

import asyncio
import base64
import json
from pathlib import Path

import pytest

from headstart.registry.credentials import Login, login_of_basic, read_login
from headstart.registry.errors import CredentialsUnusable
from headstart.registry.upstream import Credentials
from tests.registry.upstreams import write


def read(credentials: Credentials, host: str = "r.example.com", seconds: float = 5.0) -> object:
    return asyncio.run(read_login(credentials, host, seconds))


def install_helper(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> str:
    """A credential helper on PATH; gives its name."""
    program = write(directory / "docker-credential-test", f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    return "test"


@pytest.mark.parametrize(
    "text",
    [
        "user:pass:word\n",
        "user:pass:word\r\nignored",
        '{"username": "user", "password": "pass:word"}',
    ],
)
def test_a_file_holds_a_line_or_json(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "login", text)
    assert read(Credentials(file=path)) == Login("user", "pass:word")


@pytest.mark.parametrize("text", ["", "no colon", ":secret", '{"username": "secret"}', "{secret"])
def test_a_file_without_credentials_is_refused_without_repeating_it(
    tmp_path: Path, text: str
) -> None:
    path = write(tmp_path / "login", text)
    with pytest.raises(CredentialsUnusable, match="login") as refusal:
        read(Credentials(file=path))
    assert "secret" not in str(refusal.value)


def test_a_file_that_is_not_there_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CredentialsUnusable, match="absent cannot be read"):
        read(Credentials(file=tmp_path / "absent"))


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("r.example.com", "r.example.com"),
        ("r.example.com", "https://r.example.com"),
        ("r.example.com", "https://r.example.com/v2/"),
        ("docker.io", "https://index.docker.io/v1/"),
        ("docker.io", "docker.io"),
        ("localhost:5000", "localhost:5000"),
    ],
)
def test_a_docker_config_is_searched_under_every_name_of_a_registry(
    tmp_path: Path, host: str, key: str
) -> None:
    auth = base64.b64encode(b"user:password").decode()
    config = {"auths": {"other.example.com": {"auth": "b3RoZXI6eA=="}, key: {"auth": auth}}}
    path = write(tmp_path / "config.json", json.dumps(config))
    assert read(Credentials(docker_config=path), host) == Login("user", "password")
    assert read(Credentials(docker_config=tmp_path), host) == Login("user", "password")


@pytest.mark.parametrize(
    ("entry", "login"),
    [
        ({"username": "user", "password": "p"}, Login("user", "p")),
        ({"auth": "dXNlcjpw", "identitytoken": "it"}, Login("user", identity_token="it")),
        ({"identitytoken": "it"}, Login(identity_token="it")),
        ({"auth": "not base64"}, None),
        ({}, None),
        ("wrong", None),
    ],
)
def test_entries_of_a_docker_config(tmp_path: Path, entry: object, login: Login | None) -> None:
    path = write(tmp_path / "config.json", json.dumps({"auths": {"r.example.com": entry}}))
    assert read(Credentials(docker_config=path)) == login


def test_a_docker_config_without_the_registry_means_no_credentials(tmp_path: Path) -> None:
    path = write(tmp_path / "config.json", "{}")
    assert read(Credentials(docker_config=path)) is None


def test_a_helper_is_asked_for_the_registry_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """read server; echo "$1 $server" > "$(dirname "$0")/asked"
    echo '{"ServerURL": "x", "Username": "user", "Secret": "password"}'"""
    name = install_helper(tmp_path, monkeypatch, script)
    assert read(Credentials(helper=name)) == Login("user", "password")
    assert (tmp_path / "asked").read_text() == "get r.example.com\n"
    read(Credentials(helper=name), "docker.io")
    assert (tmp_path / "asked").read_text() == "get https://index.docker.io/v1/\n"


@pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
def test_a_docker_config_leads_to_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    name = install_helper(
        tmp_path, monkeypatch, """echo '{"Username": "<token>", "Secret": "identity"}'"""
    )
    value: object = name if key == "credsStore" else {"r.example.com": name}
    path = write(tmp_path / "config.json", json.dumps({key: value}))
    assert read(Credentials(docker_config=path)) == Login(identity_token="identity")


def test_a_store_that_has_nothing_leaves_the_entry_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo 'credentials not found in native keychain'; exit 1"
    name = install_helper(tmp_path, monkeypatch, script)
    auths = {"r.example.com": {"auth": base64.b64encode(b"user:p").decode()}}
    path = write(tmp_path / "config.json", json.dumps({"credsStore": name, "auths": auths}))
    assert read(Credentials(docker_config=path)) == Login("user", "p")
    assert read(Credentials(helper=name)) is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo secret; exit 3", "status 3"),
        ("echo secret", "no JSON object"),
        ("""echo '{"Username": "secret"}'""", "no Username and Secret"),
        ("exec sleep 30", "no answer within"),
    ],
)
def test_a_broken_helper_is_named_and_its_words_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    name = install_helper(tmp_path, monkeypatch, script)
    with pytest.raises(CredentialsUnusable, match=words) as refusal:
        read(Credentials(helper=name), seconds=0.5)
    assert "docker-credential-test" in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("name", ["../evil", "a b", "", "none-such"])
def test_a_helper_with_no_program_of_that_name_is_refused(name: str) -> None:
    with pytest.raises(CredentialsUnusable):
        read(Credentials(helper=name))


def test_logins_do_not_show_their_secrets() -> None:
    assert "secret" not in repr(Login("user", "secret", "secret"))
    login = Login("user", "pass:word")
    assert login_of_basic(login.basic()) == login
    assert login_of_basic("Bearer x") is None
    assert login_of_basic("Basic !") is None
