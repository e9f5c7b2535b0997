"""What a person reads while something works. Imports no torch."""

from __future__ import annotations

import os


def say(line: str) -> None:
    """Print a line at once; of processes that train together the first one does (launchers number them in RANK)."""
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):
        print(line, flush=True)
