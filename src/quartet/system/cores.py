"""How many processor cores this process may use, and how its threads wait for each other. Imports no torch."""

import os

SPINS = 10_000  # looks at a lock before a thread sleeps; GNU's OpenMP has 300,000. Measured in docs/notes.md


def n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores() -> None:
    """Let threads that wait give their core to other work soon; before torch is imported.

    Threads that look at a lock again and again hold a core that the thread they wait for may need, if anything else runs.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
