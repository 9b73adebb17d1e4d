"""``python -m bench``: names, sizes, what is said of them; where files go."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench import __main__ as command
from bench.disks import CannotThrottle, throttle
from bench.peers import Origin
from bench.setting import Setting, kind_of
from tests.parts.curl import fetch

MIB = 1 << 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pul"], "pul is no benchmark; there are pull,"),
        (["pull", "--size", "big"], "--size"),
        (["pull", "--size", "1MiB"], "at least 16MiB"),
        (["pull", "--rounds", "0"], "--rounds: at least 1"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_every_benchmark_can_be_called() -> None:
    for name in command.BENCHMARKS:
        assert callable(command.benchmark(name)), name


def test_sizes_are_the_users_else_by_the_kind_of_run() -> None:
    def setting(quick: bool, size: int | None) -> Setting:
        return Setting(Console(file=io.StringIO()), Path("results"), quick=quick, size=size)

    assert setting(False, None).choose(8, 2) == 8
    assert setting(True, None).choose(8, 2) == 2
    assert setting(True, 5).choose(8, 2) == 5


def test_scratch_is_where_the_user_says_and_is_removed(tmp_path: Path) -> None:
    printed = io.StringIO()
    setting = Setting(Console(file=printed), Path("results"), directory=tmp_path)
    with setting.scratch(1) as place:
        assert place.parent == tmp_path
        (place / "file").touch()
    assert not place.exists()
    assert kind_of(tmp_path) in printed.getvalue()


def test_an_origin_serves_its_blobs_by_its_fronts(tmp_path: Path) -> None:
    with Origin(tmp_path / "origin", tls=True) as origin:
        full, sparse = origin.add(MIB), origin.add_sparse(3 * MIB)
        front, secure = origin.front(), origin.front(tls=True)
        assert fetch(front.url + full.target).size == MIB
        answer = fetch(secure.url + sparse.target, ca_file=origin.ca_file)
        assert (answer.status, answer.size) == (200, 3 * MIB)
        assert answer.headers["docker-content-digest"] == sparse.digest
        assert front.wait_for_accesses(1)[0].body_bytes == MIB


def test_disks_are_not_throttled_without_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(CannotThrottle, match="root"), throttle(tmp_path):
        pass
