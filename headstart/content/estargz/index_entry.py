"""Whether an ordinary unpack shows the TOC's own file, ``stargz.index.json``.

Two kinds of writers: those that write headers anew (stargz-snapshotter's ``Build``: ctr-remote,
nerdctl, ko, kaniko) leave out the two zero blocks at the end of the tar, and so the TOC's file is
the last one of the layer; those that keep the tar as it is (BuildKit) keep its end, and nothing
reads what follows that.
"""

from collections.abc import Iterable

from headstart.content.estargz.toc_file import TocFile
from headstart.content.layer.caps import DEFAULT_CAPS, LayerCaps
from headstart.content.layer.entry import Entry
from headstart.content.layer.errors import LayerRefused
from headstart.content.layer.tar import TarParser


def index_entry(
    pieces: Iterable[bytes | memoryview], skip: int, file: TocFile, caps: LayerCaps = DEFAULT_CAPS
) -> Entry | None:
    """The entry of the TOC's own file; None when the tar ends before it.

    ``pieces`` are the inflated bytes that ``Toc.tail`` asks for, whose first ``skip`` are passed
    over. Raises LayerRefused for a tar that is no tar, or has a file that a TOC would tell of.
    """
    parser = TarParser(caps)
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        for given in parser.feed(memoryview(piece)[skip:]):
            if isinstance(given, memoryview) or given.size:
                raise LayerRefused("its TOC says nothing of the last file in its tar")
        skip = 0
    if skip:
        raise LayerRefused("the last file of its TOC is longer than its member")
    for given in parser.feed(memoryview(file.head)):
        if isinstance(given, Entry):
            return given
    return None
