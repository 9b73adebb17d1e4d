"""Threads that hand over pieces: bounded, in order, and all stopped by the first failure."""

import threading

import pytest

from proxy.fill.layers.flow import DEPTH, Channel, Flow, Stopped
from tests.fill.layers.making import layer_threads


def test_items_come_in_order_and_end() -> None:
    flow = Flow(lambda: None)
    channel: Channel[int] = flow.channel()

    def give() -> None:
        for number in range(10 * DEPTH):
            channel.put(number)
        channel.end()

    flow.start("layer-test", give)
    assert list(channel.items()) == list(range(10 * DEPTH))
    flow.join()
    assert layer_threads() == []


def test_a_full_channel_waits_and_a_failure_wakes_it() -> None:
    failed = threading.Event()
    flow = Flow(failed.set)
    channel: Channel[int] = flow.channel()
    given: list[int] = []
    full = threading.Event()

    def give() -> None:
        for number in range(DEPTH + 1):
            if number == DEPTH:
                full.set()
            channel.put(number)
            given.append(number)

    flow.start("layer-test", give)
    assert full.wait(10)
    flow.fail(OSError("first"))
    flow.fail(OSError("second"))
    assert failed.is_set()
    with pytest.raises(OSError, match="first"):
        flow.join()
    assert given == list(range(DEPTH))
    with pytest.raises(Stopped):
        list(channel.items())
    assert layer_threads() == []


def test_who_waits_for_items_is_woken_by_a_failure_and_looks_meanwhile() -> None:
    flow = Flow(lambda: None)
    channel: Channel[int] = flow.channel()
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyError("looked")

    with pytest.raises(KeyError, match="looked"):
        list(channel.items(look))
    flow.start("layer-test", lambda: flow.fail(OSError("gone")))
    with pytest.raises(Stopped):
        list(channel.items())
    with pytest.raises(OSError, match="gone"):
        flow.join()
