"""What of a layer is wanted first, and the rate of the rest."""

from pathlib import Path

import pytest

from headstart.content.landmarks.range_set import Range
from headstart.store.geometry import KIB, MIB
from proxy.fill.layers.streaming import PACED_BYTES, PolicyName, Streaming
from tests.fill.layers.test_asking import BLOCK, Members


@pytest.mark.parametrize(
    ("policy", "landmark", "none", "expected"),
    [
        ("auto", 300 * KIB, False, [range(3)]),
        ("landmark", 300 * KIB, False, [range(3)]),
        ("auto", None, False, None),
        ("auto", None, True, []),
        ("all", 300 * KIB, False, None),
        ("list", 300 * KIB, False, None),
        ("none", 300 * KIB, False, []),
    ],
)
def test_what_comes_first_is_what_the_policy_says(
    tmp_path: Path,
    policy: PolicyName,
    landmark: int | None,
    none: bool,
    expected: list[range] | None,
) -> None:
    members = Members(tmp_path, [100 * KIB] * 10)
    members.writer.toc.landmark_offset = landmark
    members.writer.toc.no_prefetch = none
    first = Streaming(policy).first(members.writer, None)
    assert (None if first is None else list(first)) == expected
    members.close()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("auto", [range(7, 9), range(2, 3)]),
        ("list", [range(7, 9), range(2, 3)]),
        ("landmark", [range(3)]),
        ("all", None),
        ("none", []),
    ],
)
def test_a_list_comes_before_the_landmark(
    tmp_path: Path, policy: PolicyName, expected: list[range] | None
) -> None:
    members = Members(tmp_path, [100 * KIB] * 10)
    members.writer.toc.landmark_offset = 300 * KIB
    listed = [Range(7 * BLOCK, 2 * BLOCK), Range(2 * BLOCK, BLOCK)]
    first = Streaming(policy).first(members.writer, listed)
    assert (None if first is None else list(first)) == expected
    members.close()


def test_a_rate_spaces_what_is_asked_for() -> None:
    now = [100.0]
    streaming = Streaming("auto", 2 * MIB, clock=lambda: now[0])
    assert streaming.brings_rest
    assert streaming.most == 2 * MIB
    assert streaming.wait() == 0
    streaming.asked(2 * MIB)
    assert streaming.wait() == pytest.approx(1.0)
    now[0] += 0.75
    assert streaming.wait() == pytest.approx(0.25)
    now[0] += 10
    assert streaming.wait() == 0
    streaming.asked(MIB)
    assert streaming.wait() == pytest.approx(0.5), "what was not used is not saved up"
    assert Streaming("auto", 100 * MIB).most == PACED_BYTES


def test_without_a_rate_nothing_waits() -> None:
    streaming = Streaming("auto", "auto")
    streaming.asked(1 << 40)
    assert streaming.wait() == 0
    assert streaming.most is None
    assert not Streaming("auto", "disabled").brings_rest
    assert not Streaming("none", "auto").brings_rest
