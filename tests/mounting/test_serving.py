"""What ``headstart snapshotter`` says before it serves."""

import logging
from pathlib import Path

import pytest

from headstart.store.layout import Layout
from mount.serving import tell_unused


def test_a_cache_that_no_mirror_has_used_is_told_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    layout = Layout((tmp_path / "cache",))
    tell_unused(layout)
    assert str(tmp_path / "cache") in caplog.text
    assert "HEADSTART_CACHE__STRIPES=DIRECTORY" in caplog.text
    caplog.clear()
    layout.prepare()
    tell_unused(layout)
    assert not caplog.records
