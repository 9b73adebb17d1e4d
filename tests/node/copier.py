"""A program that reads one file through one descriptor, and says by its exit what it met."""

from pathlib import Path

from tests.parts.processes import run

_SOURCE = r"""
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
/* copy FROM TO: exit status is the errno of what failed. Where TO is "-" it ends when it has
   printed all, else it waits for ever: its files can be looked at as long as it lives. */
int main(int count, char **names) {
    static char bytes[65536];
    if (count != 3) return EINVAL;
    int prints = !strcmp(names[2], "-");
    int from = open(names[1], O_RDONLY);
    int to = prints ? 1 : open(names[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (from < 0 || to < 0) return errno;
    for (;;) {
        ssize_t got = read(from, bytes, sizeof bytes);
        if (got < 0) return errno;
        if (got == 0) break;
        if (write(to, bytes, got) != got) return errno;
    }
    for (; !prints;) pause();
    return 0;
}
"""


def compiled_copier(directory: Path) -> bytes:
    """The program, linked statically."""
    source, program = directory / "copy.c", directory / "copy"
    source.write_text(_SOURCE)
    run(["gcc", "-static", "-Os", "-s", "-o", program, source])
    return program.read_bytes()
