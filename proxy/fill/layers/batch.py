"""Members of a layer for one thread at a time: written until one of them fails."""

from dataclasses import dataclass

from headstart.content.layer.errors import LayerRefused
from proxy.fill.layers.members import MemberWriter
from proxy.fill.layers.source import CompressedBytes, SourceFailed


@dataclass(slots=True)
class Written:
    """What a thread has brought: ``runs`` of members, and nothing from ``stop`` on by an error."""

    runs: list[tuple[int, int]]
    stop: int
    error: Exception | None = None


def write_all(writer: MemberWriter, numbers: range, copy: CompressedBytes | None) -> Written:
    """Inflate, verify and write members whose bytes are here; those of ``copy`` if there is one."""
    written = Written([], numbers.stop)
    for number in numbers:
        try:
            # Else it is done, or another thread has it, and tells.
            brought = writer.write(number, copy)
        except (LayerRefused, SourceFailed, OSError) as error:
            written.stop, written.error = number, error
            break
        if brought and written.runs and written.runs[-1][1] == number:
            written.runs[-1] = written.runs[-1][0], number + 1
        elif brought:
            written.runs.append((number, number + 1))
    return written
