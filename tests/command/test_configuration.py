"""What a configuration accepts, and in which words it refuses."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from headstart.command.configuration import Configuration, ConfigurationError
from headstart.command.sources import find_file
from headstart.command.values import Percent, TcpAddress, UnixAddress

KIB, MIB = 1024, 1024 * 1024


def load(
    directory: Path, text: str = "", environment: Mapping[str, str] | None = None
) -> Configuration:
    """Load ``text`` as the file of ``directory``; nothing of this process's environment."""
    file = directory / "config.yaml"
    file.write_text(text)
    return Configuration.load(file, environment=environment or {})


def refusal(
    directory: Path, text: str = "", environment: Mapping[str, str] | None = None
) -> ConfigurationError:
    """The error that ``text`` is refused with; always one line."""
    with pytest.raises(ConfigurationError) as caught:
        load(directory, text, environment)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy in str(caught.value)
    return caught.value


def test_an_empty_file_gives_the_promised_defaults(tmp_path: Path) -> None:
    configuration = load(tmp_path)
    assert configuration.mirror.listen == (TcpAddress("127.0.0.1", 5050),)
    assert configuration.mirror.tls is None
    assert configuration.mirror.default_upstream == "docker.io"
    assert configuration.mirror.tag_ttl == 0
    assert configuration.mirror.stale_window == 24 * 3600
    assert configuration.control.token_file is None
    assert configuration.cache.keep == "auto"
    assert [stripe.path for stripe in configuration.cache.stripes] == [
        Path.home() / ".cache/headstart"
    ]
    assert configuration.cache.max_size == Percent(80)
    assert configuration.cache.low_water == Percent(90)
    assert configuration.cache.extent_size == 32 * MIB
    assert configuration.fetch.request_size == 32 * MIB
    assert configuration.fetch.on_demand_size == 256 * KIB
    assert configuration.fetch.max_connections == "auto"
    assert configuration.fetch.reissue == "auto"
    assert configuration.fetch.window == 96 * MIB
    deadlines = configuration.fetch.deadlines
    assert (deadlines.connect, deadlines.first_byte, deadlines.stall) == (5, 15, 20)
    assert (deadlines.stall_rate, deadlines.job) == (64 * KIB, None)
    assert configuration.mount.root == Path("/var/lib/headstart")
    assert configuration.mount.socket == Path("/run/headstart/snapshotter.sock")
    assert configuration.mount.mode == "auto"
    assert configuration.mount.read_deadline == 300
    assert configuration.mount.repositories == ("*",)
    assert configuration.prefetch.policy == "auto"
    assert configuration.prefetch.background == "auto"


def test_sections_without_keys_are_all_defaults(tmp_path: Path) -> None:
    empty = "".join(f"{name}:\n" for name in ("mirror", "control", "cache", "fetch", "mount"))
    assert load(tmp_path, empty) == load(tmp_path)


def test_nothing_can_be_changed_afterwards(tmp_path: Path) -> None:
    configuration = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        configuration.fetch.window = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("127.0.0.1:5051", [TcpAddress("127.0.0.1", 5051)]),
        ("localhost:0", [TcpAddress("localhost", 0)]),
        ("'[::1]:5050'", [TcpAddress("::1", 5050)]),
        ("unix:/run/headstart.sock", [UnixAddress(Path("/run/headstart.sock"))]),
        (
            "[127.0.0.1:5050, 'unix:/run/h.sock']",
            [TcpAddress("127.0.0.1", 5050), UnixAddress(Path("/run/h.sock"))],
        ),
        (
            "127.0.0.1:5050, 0.0.0.0:6060",
            [TcpAddress("127.0.0.1", 5050), TcpAddress("0.0.0.0", 6060)],
        ),
    ],
)
def test_listen_addresses(
    tmp_path: Path, written: str, read: list[TcpAddress | UnixAddress]
) -> None:
    configuration = load(tmp_path, f"mirror:\n  listen: {written}\n")
    assert list(configuration.mirror.listen) == read


@pytest.mark.parametrize(
    "written",
    [
        "5050",
        "':5050'",
        "127.0.0.1",
        "127.0.0.1:65536",
        "127.0.0.1:http",
        "'::1:5050'",
        "'[::x]:1'",
        "300.0.0.1:5050",
        "'-x:5050'",
        "'a b:5050'",
        "'unix:'",
        "[]",
        "null",
        "{a: b}",
    ],
)
def test_bad_listen_addresses_are_refused_with_a_remedy(tmp_path: Path, written: str) -> None:
    error = refusal(tmp_path, f"mirror:\n  listen: {written}\n")
    assert error.field.startswith("mirror.listen")
    assert "line 2" in str(error)


def test_a_bare_port_is_answered_with_the_address_that_was_meant(tmp_path: Path) -> None:
    error = refusal(tmp_path, "mirror: {listen: 5050}")
    assert "write 127.0.0.1:5050, or 0.0.0.0:5050" in error.remedy


def test_an_unknown_key_names_the_nearest_and_its_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, "fetch:\n  reissue: auto\n  requst_size: 32MiB\n")
    assert error.field == "fetch.requst_size"
    assert error.remedy == "did you mean request_size?"
    assert error.place == f"{tmp_path / 'config.yaml'}, line 3"


def test_an_unknown_section_and_an_unknown_key_of_an_upstream(tmp_path: Path) -> None:
    assert refusal(tmp_path, "mirrors: {}").remedy == "did you mean mirror?"
    error = refusal(tmp_path, "upstreams:\n  ghcr.io: {urll: 'https://ghcr.io'}")
    assert (error.field, error.remedy) == ("upstreams.ghcr.io.urll", "did you mean url?")


def test_a_word_that_is_none_of_the_known_names_the_nearest(tmp_path: Path) -> None:
    assert refusal(tmp_path, "fetch: {reissue: atuo}").remedy == "did you mean auto?"
    error = refusal(tmp_path, "mount: {mode: 7}")
    assert error.remedy == "known here: auto, file, loop, tree"
    assert error.value == "7"


def test_yaml_errors_name_the_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, "mirror:\n  listen: [127.0.0.1:5050\nfetch: {}\n")
    assert "is not YAML" in str(error)
    assert "line 3" in str(error)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "fetch:\n  window: 96MiB\n  window: 64MiB\n")
    assert (error.field, error.problem) == ("fetch.window", "stands twice, first in line 2")
    assert "line 3" in str(error)


@pytest.mark.parametrize("text", ["- a\n", "word\n", "mirror: [1]\n", "fetch: 3\n", "&a [*a]\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text).remedy


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.yaml' cannot be read: No such file"):
        Configuration.load(tmp_path / "absent.yaml", environment={})
    with pytest.raises(ConfigurationError, match="Is a directory"):
        Configuration.load(tmp_path, environment={})
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        Configuration.load(latin, environment={})


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("fetch: {request_size: 33MB}", "fetch.request_size"),
        ("fetch: {request_size: 512KiB}", "fetch.request_size"),
        ("fetch: {request_size: 1GiB}", "fetch.request_size"),
        ("fetch: {request_size: many}", "fetch.request_size"),
        ("fetch: {on_demand_size: 100KiB}", "fetch.on_demand_size"),
        ("fetch: {on_demand_size: 0}", "fetch.on_demand_size"),
        ("fetch: {on_demand_size: 2MiB, request_size: 1MiB}", "fetch"),
        ("fetch: {window: 1MiB}", "fetch.window"),
        ("fetch: {max_connections: 0}", "fetch.max_connections"),
        ("fetch: {max_connections: 257}", "fetch.max_connections"),
        ("fetch: {max_connections: true}", "fetch.max_connections"),
        ("fetch: {deadlines: {stall: 0s}}", "fetch.deadlines.stall"),
        ("fetch: {deadlines: {stall: soon}}", "fetch.deadlines.stall"),
        ("fetch: {deadlines: {stall_rate: null}}", "fetch.deadlines.stall_rate"),
        ("cache: {extent_size: 64MiB}", "cache.extent_size"),
        ("cache: {extent_size: 100KiB}", "cache.extent_size"),
        ("cache: {max_size: 101%}", "cache.max_size"),
        ("cache: {max_size: 0}", "cache.max_size"),
        ("cache: {low_water: 0%}", "cache.low_water"),
        ("cache: {low_water: 10GiB}", "cache.low_water"),
        ("cache: {stripes: []}", "cache.stripes"),
        ("cache: {stripes: [{path: /a}, {path: /a}]}", "cache.stripes"),
        ("cache: {stripes: [{path: /a}, {path: /a/b}]}", "cache.stripes"),
        ("cache: {stripes: [{}]}", "cache.stripes[0].path"),
        ("cache: {stripes: [{path: ''}]}", "cache.stripes[0].path"),
        ("mirror: {tag_ttl: -1s}", "mirror.tag_ttl"),
        ("mirror: {tls: {certificate: /c.pem}}", "mirror.tls.key"),
        ("mirror: {default_upstream: quay.io}", "mirror.default_upstream"),
        ("mirror: {default_upstream: 'a b'}", "mirror.default_upstream"),
        ("mount: {read_deadline: -1s}", "mount.read_deadline"),
        ("mount: {repositories: ['A B']}", "mount.repositories[0]"),
        ("prefetch: {background: fast}", "prefetch.background"),
        ("upstreams: {}", "upstreams"),
        ("upstreams: {'https://ghcr.io': {}}", "upstreams.https://ghcr.io"),
        ("upstreams: {ghcr.io: {url: 'ftp://ghcr.io'}}", "upstreams.ghcr.io.url"),
        ("upstreams: {ghcr.io: {url: 'https://ghcr.io?x=1'}}", "upstreams.ghcr.io.url"),
        ("upstreams: {ghcr.io: {url: 'https://h:99999'}}", "upstreams.ghcr.io.url"),
        ("upstreams: {ghcr.io: {allow_private: perhaps}}", "upstreams.ghcr.io.allow_private"),
        ("upstreams: {ghcr.io: {credentials: {}}}", "upstreams.ghcr.io.credentials"),
        (
            "upstreams: {ghcr.io: {credentials: {file: a, helper: b}}}",
            "upstreams.ghcr.io.credentials",
        ),
        (
            "upstreams: {ghcr.io: {credentials: {helper: ../x}}}",
            "upstreams.ghcr.io.credentials.helper",
        ),
        ("upstreams: {ghcr.io: {url: 'http://h', ca_file: c.pem}}", "upstreams.ghcr.io"),
        ("upstreams: {'localhost:5000': {}}", "upstreams.localhost:5000"),
        ("upstreams: {r.example: {url: 'http://127.0.0.2'}}", "upstreams.r.example"),
    ],
)
def test_every_value_is_checked(tmp_path: Path, text: str, field: str) -> None:
    error = refusal(tmp_path, text)
    assert error.field == field
    assert "line 1" in str(error)


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    error = refusal(tmp_path, "upstreams: {ghcr.io: {url: 'https://me:s3cret@ghcr.io'}}")
    assert error.field == "upstreams.ghcr.io.url"
    assert "s3cret" not in str(error)
    assert error.__cause__ is None and error.__context__ is None


def test_credentials_have_to_be_declared_shared(tmp_path: Path) -> None:
    credentials = "credentials: {file: secret}"
    error = refusal(tmp_path, f"upstreams: {{ghcr.io: {{{credentials}}}}}")
    assert "access: shared" in error.remedy
    error = refusal(tmp_path, f"upstreams: {{ghcr.io: {{{credentials}, access: passthrough}}}}")
    assert "access: shared" in error.remedy
    configuration = load(tmp_path, f"upstreams: {{ghcr.io: {{{credentials}, access: shared}}}}")
    assert configuration.upstreams()["ghcr.io"].access == "shared"


def test_without_docker_hub_nothing_is_the_default_upstream(tmp_path: Path) -> None:
    configuration = load(tmp_path, "upstreams: {quay.io: {}}")
    assert configuration.mirror.default_upstream is None
    named = load(tmp_path, "upstreams: {quay.io: {}}\nmirror: {default_upstream: quay.io}")
    assert named.mirror.default_upstream == "quay.io"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environment = {
        "HEADSTART_MIRROR__LISTEN": "127.0.0.1:5051,unix:/run/h.sock",
        "HEADSTART_CACHE__STRIPES": "/a,/b",
        "HEADSTART_CACHE__MAX_SIZE": "10GiB",
        "HEADSTART_FETCH__MAX_CONNECTIONS": "16",
        "HEADSTART_FETCH__DEADLINES__STALL": "2m",
        "HEADSTART_MOUNT__REPOSITORIES": "docker.io/library/*, ghcr.io/*",
        "HEADSTART_PREFETCH__BACKGROUND": "10MiB/s",
        "HEADSTART_UPSTREAMS__GHCR.IO__ALLOW_PRIVATE": "true",
        "HEADSTART_MIRROR__DEFAULT_UPSTREAM": "null",
        "HEADSTART_LAUNCHER_PID": "1",
        "HEADSTART_SERVICE_HOST": "10.0.0.1",
    }
    text = (
        "mirror: {listen: 127.0.0.1:1}\n"
        "fetch: {max_connections: 4, deadlines: {stall: 1s, connect: 3s}}\n"
        "upstreams: {ghcr.io: {url: 'https://ghcr.example'}}\n"
    )
    configuration = load(tmp_path, text, environment)
    assert [str(address) for address in configuration.mirror.listen] == [
        "127.0.0.1:5051",
        "unix:/run/h.sock",
    ]
    assert [stripe.path for stripe in configuration.cache.stripes] == [Path("/a"), Path("/b")]
    assert configuration.cache.max_size == 10 * 1024 * MIB
    assert configuration.fetch.max_connections == 16
    assert configuration.fetch.deadlines.stall == 120
    assert configuration.fetch.deadlines.connect == 3
    assert configuration.mount.repositories == ("docker.io/library/*", "ghcr.io/*")
    assert configuration.prefetch.background == 10 * MIB
    assert configuration.mirror.default_upstream is None
    upstream = configuration.upstreams()["ghcr.io"]
    assert (upstream.url, upstream.allow_private) == ("https://ghcr.example", True)


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, "", {"HEADSTART_FETCH__WINDOW": "tiny"})
    assert error.field == "fetch.window"
    assert error.place == "environment variable HEADSTART_FETCH__WINDOW"
    error = refusal(tmp_path, "", {"HEADSTART_FETCH__WINDWO": "96MiB"})
    assert error.remedy == "did you mean window?"
    error = refusal(tmp_path, "", {"HEADSTART_FETCH__": "96MiB"})
    assert error.field == "HEADSTART_FETCH__"


def test_a_variable_with_one_underscore_too_few_is_not_ignored(tmp_path: Path) -> None:
    error = refusal(tmp_path, "", {"HEADSTART_MIRROR_LISTEN": "127.0.0.1:1"})
    assert error.remedy == "did you mean HEADSTART_MIRROR__LISTEN?"


def test_an_alias_of_yaml_does_not_carry_a_variable_over(tmp_path: Path) -> None:
    text = "upstreams:\n  a.example: &same {url: 'https://x.example'}\n  b.example: *same\n"
    environment = {"HEADSTART_UPSTREAMS__A.EXAMPLE__URL": "https://y.example"}
    upstreams = load(tmp_path, text, environment).upstreams()
    assert upstreams["a.example"].url == "https://y.example"
    assert upstreams["b.example"].url == "https://x.example"


def test_upstreams_take_over_what_fetch_says_and_say_their_own(tmp_path: Path) -> None:
    text = """
fetch: {max_connections: 12, deadlines: {connect: 4s, job: 10m}}
upstreams:
  docker.io:
  quay.io:
    url: https://quay.example:8443/
    ca_file: ca.pem
    credentials: {docker-config: docker.json}
    access: shared
    realm_hosts: [auth.quay.io]
    max_connections: auto
    connection_rate: 60MB
    deadlines: {connect: 1s, stall_rate: 1MiB}
"""
    upstreams = load(tmp_path, text).upstreams()
    hub, quay = upstreams["docker.io"], upstreams["quay.io"]
    assert (hub.host, hub.url) == ("docker.io", "https://registry-1.docker.io")
    assert (hub.access, hub.allow_private, hub.credentials) == ("anonymous", False, None)
    assert (hub.max_connections, hub.connection_rate) == (12, None)
    assert (hub.deadlines.connect, hub.deadlines.stall, hub.deadlines.job) == (4, 20, 600)
    assert quay.url == "https://quay.example:8443"
    assert quay.ca_file == tmp_path / "ca.pem"
    assert quay.credentials is not None
    assert quay.credentials.docker_config == tmp_path / "docker.json"
    assert tuple(quay.realm_hosts) == ("auth.quay.io",)
    assert (quay.max_connections, quay.connection_rate) == (None, 60_000_000)
    assert (quay.deadlines.connect, quay.deadlines.first_byte) == (1, 15)
    assert (quay.deadlines.stall_rate, quay.deadlines.job) == (MIB, 600)


def test_the_three_kinds_of_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    text = """
upstreams:
  a.example: {access: shared, credentials: {file: ~/secret}}
  b.example: {access: shared, credentials: {helper: ecr-login}}
  c.example: {access: shared, credentials: docker-config}
"""
    found = [upstream.credentials for upstream in load(tmp_path, text).upstreams().values()]
    a, b, c = found
    assert a is not None and a.file == Path("/home/somebody/secret")
    assert b is not None and b.helper == "ecr-login"
    assert c is not None and c.docker_config == Path("/home/somebody/.docker/config.json")


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    configuration = load(tmp_path, "mirror: {tls: {certificate: c.pem, key: k.pem}}")
    assert configuration.mirror.tls is not None
    assert configuration.mirror.tls.certificate == tmp_path / "c.pem"


def test_a_home_directory_that_is_not_known_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refusal(tmp_path, "cache: {stripes: [~nobody-of-that-name/x]}")
    assert error.field == "cache.stripes[0].path"

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert "home directory" in str(refusal(tmp_path))


def test_the_control_socket_lies_beside_the_cache_unless_it_is_named(tmp_path: Path) -> None:
    configuration = load(tmp_path, "cache: {stripes: [/one, /two]}")
    assert configuration.control_socket() == Path("/one/run/control.sock")
    named = load(tmp_path, "control: {socket: /run/c.sock}")
    assert named.control_socket() == Path("/run/c.sock")


def test_what_is_written_back_reads_the_same(tmp_path: Path) -> None:
    text = """
mirror: {listen: ['[::1]:5050', 'unix:/run/h.sock'], tag_ttl: 1500ms, stale_window: 90s}
cache: {max_size: 10GB, low_water: 82.5%, stripes: [/a, /b], extent_size: 8MiB}
fetch: {request_size: 5MiB, max_connections: 3, deadlines: {job: 10m}}
prefetch: {background: 1500KB}
upstreams:
  docker.io: {deadlines: {connect: 1s}, connection_rate: 60MB}
  b.example: {access: shared, credentials: {docker-config: /d.json}, max_connections: auto}
"""
    configuration = load(tmp_path, text)
    plain = configuration.plain()
    for written in (yaml.safe_dump(plain), json.dumps(plain)):
        again = load(tmp_path, written)
        assert again.upstreams() == configuration.upstreams()
        assert again.plain() == plain
        for section in ("mirror", "control", "cache", "fetch", "mount", "prefetch"):
            assert getattr(again, section) == getattr(configuration, section)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("")
    text = """
mirror: {tls: {certificate: c.pem, key: k.pem}}
control: {token_file: token}
upstreams: {a.example: {ca_file: ca.pem, access: shared, credentials: {file: secret}}}
"""
    fields = [error.field for error in load(tmp_path, text).unreadable_files()]
    assert fields == [
        "control.token_file",
        "mirror.tls.key",
        "upstreams.a.example.ca_file",
        "upstreams.a.example.credentials.file",
    ]
    assert list(load(tmp_path).unreadable_files()) == []


def test_the_first_file_of_the_search_is_read(tmp_path: Path) -> None:
    first, second = tmp_path / "config.yaml", tmp_path / "etc.yaml"
    assert find_file(None, (first, second)) is None
    second.write_text("")
    assert find_file(None, (first, second)) == second
    first.write_text("")
    assert find_file(None, (first, second)) == first
    named = tmp_path / "named.yaml"
    assert find_file(named, (first, second)) == named


def test_the_shipped_file_is_the_defaults_and_an_example_upstream(tmp_path: Path) -> None:
    shipped_file = Path(__file__).resolve().parents[2] / "config.yaml"
    shipped = Configuration.load(shipped_file, environment={})
    defaults = load(tmp_path)
    for section in ("mirror", "control", "cache", "fetch", "mount", "prefetch"):
        assert getattr(shipped, section) == getattr(defaults, section)
    examples = shipped.upstreams()
    local = examples.pop("localhost:5000")
    assert (local.url, local.allow_private) == ("http://127.0.0.1:5000", True)
    assert examples == defaults.upstreams()


def test_the_shipped_file_names_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "config.yaml").read_text()
    written = yaml.safe_load(text)
    assert set(written) == set(Configuration.known_keys())
    for section in ("mirror", "control", "cache", "fetch", "mount", "prefetch"):
        model = Configuration.model_fields[section].annotation
        assert model is not None
        assert set(written[section]) == set(model.known_keys()), section
    from headstart.command.sections import FetchDeadlines, UpstreamKeys

    assert set(written["fetch"]["deadlines"]) == set(FetchDeadlines.known_keys())
    for key in UpstreamKeys.known_keys():
        assert f"#   {key}: " in text, key
