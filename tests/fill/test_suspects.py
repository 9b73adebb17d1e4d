"""Which blobs are not asked for any more, and for how long."""

from headstart.content.digest import Digest
from proxy.fill.suspects import REFUSE_SECONDS, SUSPECT_SECONDS, Suspects
from tests.fill.fills import Clock

FIRST, SECOND = Digest.of(b"1"), Digest.of(b"2")


def test_f09_a_second_failure_is_answered_at_once_for_a_while() -> None:
    clock = Clock()
    suspects = Suspects(clock)
    suspects.failed(FIRST)
    assert not suspects.refused(FIRST)
    clock.now += SUSPECT_SECONDS - 1
    suspects.failed(FIRST)
    assert suspects.refused(FIRST) and not suspects.refused(SECOND)
    clock.now += REFUSE_SECONDS
    assert not suspects.refused(FIRST)


def test_a_failure_long_ago_is_forgotten() -> None:
    clock = Clock()
    suspects = Suspects(clock)
    suspects.failed(FIRST)
    clock.now += SUSPECT_SECONDS
    suspects.failed(FIRST)
    assert not suspects.refused(FIRST)


def test_a_blob_that_was_right_is_no_suspect() -> None:
    suspects = Suspects(Clock())
    suspects.failed(FIRST)
    suspects.passed(FIRST)
    suspects.failed(FIRST)
    assert not suspects.refused(FIRST)
