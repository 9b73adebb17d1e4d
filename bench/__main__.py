"""``python -m bench [NAME…] [--quick]``: runs benchmarks, prints tables, writes bench/results/."""

import argparse
import importlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from bench.measure import MIB
from bench.report import Report
from bench.setting import Setting
from headstart.content.sizes import parse_size
from tests.parts.processes import ProgramMissing

BENCHMARKS = {
    "pull": "one large blob, warm and cold, plain and TLS, beside its peers",
    "first_byte": "a cold range deep in a blob, while other pulls hold every connection",
    "many_clients": "64 cold clients of one blob: requests, bytes, seconds",
    "layers": "a giant layer beside ten small ones: how busy the connections are",
    "straggler": "one of eight connections throttled in the middle of a pull",
    "stripes": "two throttled disks beside one (root)",
    "memory": "peak memory and descriptors while 64 clients read",
    "restart": "ready again, and bytes fetched twice after SIGKILL",
    "transfer": "the bytes' way in alone: curl, pycurl, httpx, sockets",
    "inflate": "an ordinary layer to a mountable image, beside tar and containerd's unpack (root)",
    "mount": "a tree and a large file: ext4, overlayfs, and layer images mounted (root)",
    "coldstart": "from run to the first answer of a model server, over 1 Gbit/s (root)",
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was named, or everything; 1 when one of them did not come to its end."""
    chosen = _parse(arguments)
    setting = Setting(
        console=console(),
        results=chosen.results,
        quick=chosen.quick,
        rounds=chosen.rounds or (1 if chosen.quick else 5),
        size=chosen.size,
        directory=chosen.directory,
    )
    signal.signal(signal.SIGTERM, _stop)
    ended = [_run(name, setting) for name in chosen.names or BENCHMARKS]
    return 0 if all(ended) else 1


def benchmark(name: str) -> Callable[[Setting], Report]:
    """The benchmark of this name; its module is imported, with all that it needs."""
    found: Callable[[Setting], Report] = importlib.import_module(f"bench.{name}").bench
    return found


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=110)


def _run(name: str, setting: Setting) -> bool:
    setting.console.rule(f"[bold]{name}[/]: {BENCHMARKS[name]}")
    begun = time.monotonic()
    try:
        report = benchmark(name)(setting)
    except ProgramMissing as missing:
        setting.console.print(f"  not run: {missing}", style="red")
        return False
    except Exception:
        # The others are worth running still.
        setting.console.print(traceback.format_exc(), style="red", markup=False)
        return False
    report.show(setting.console)
    file = report.write(setting.results)
    setting.console.print(f"  {time.monotonic() - begun:.0f} s; figures in {file}", style="dim")
    return True


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    known = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (all): {known}")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round each")
    parser.add_argument("--rounds", type=int, help="how often each leg is run (5)")
    parser.add_argument("--size", type=parse_size, help="the blob's size, as in 2GiB")
    parser.add_argument("--directory", type=Path, help="where files go (memory if it has room)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and plots go")
    chosen = parser.parse_args(arguments)
    for name in chosen.names:
        if name not in BENCHMARKS:
            parser.error(f"{name} is no benchmark; there are {known}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds: at least 1")
    if chosen.size is not None and chosen.size < 16 * MIB:
        parser.error("--size: at least 16MiB")
    return chosen


def _stop(number: int, frame: object) -> NoReturn:
    # As an exception, so that every server that was started ends.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
