"""``python -m bench [NAME …]``: run all benchmarks, or those named; each prints a table and writes JSON."""

from __future__ import annotations

import importlib
import sys

ALL = ("stopped", "command", "call", "build", "many", "agent")
LONG = ("match", "simulation", "checkins")
"""Minutes each (the first builds packages from Debian's archive); only when named."""


def main(names: list[str]) -> int:
    """Run them one after the other."""
    for name in names or ALL:
        if name not in ALL + LONG:
            print(f"no benchmark {name!r}; there are: {', '.join(ALL + LONG)}", file=sys.stderr)
            return 2
        importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
