"""A process that reads a device file through one descriptor and compares with a plain file.

``python -m tests.device.reader DEVICE TRUTH [mmap]``: reads ranges of any place and size, dropping
the kernel's pages so that the daemon has to answer, until its input ends; then prints JSON: reads,
wrong ones, errors, the longest read in seconds, and what the first trouble was.
"""

import json
import mmap
import os
import random
import select
import sys
import time

_MOST_BYTES = 1 << 20


def main(device: str, truth: str, how: str = "read") -> None:
    """Read until the input ends."""
    file = os.open(device, os.O_RDONLY)
    true = os.open(truth, os.O_RDONLY)
    size = os.fstat(file).st_size
    mapping = mmap.mmap(file, size, prot=mmap.PROT_READ) if how == "mmap" else None
    chance = random.Random(0)
    reads = wrong = errors = 0
    longest = 0.0
    trouble = ""
    print("reading", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        offset = chance.randrange(size)
        length = chance.randint(1, _MOST_BYTES)
        began = time.monotonic()
        try:
            if mapping is not None:
                piece = mapping[offset : offset + length]
            else:
                piece = os.pread(file, length, offset)
        except OSError as error:
            errors += 1
            trouble = trouble or f"{length} bytes at {offset}: {error}"
            continue
        longest = max(longest, time.monotonic() - began)
        reads += 1
        if piece != os.pread(true, length, offset):
            wrong += 1
            trouble = trouble or f"{length} bytes at {offset}: {len(piece)} others came"
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    found = {"reads": reads, "wrong": wrong, "errors": errors, "longest": longest}
    print(json.dumps({**found, "trouble": trouble}))


if __name__ == "__main__":
    main(*sys.argv[1:])
