"""One data-parallel worker: python -m quartet.worker <run directory>, as workers.py starts it.

Exit code 0, 1 with the error handed over, 130 or 143 after a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from quartet.interruption import Interrupted, stoppable
from quartet.workers import PARENT, describe

GRACE = 30  # s for a checkpoint once the parent is gone, as long as torchelastic gives


def main() -> None:
    threading.Thread(target=_follow, args=(int(os.environ.get(PARENT, os.getppid())),), daemon=True).start()
    if int(os.environ.get("RANK", 0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # one of them tells how it goes
    try:
        with stoppable():
            from quartet.cli import quiet_libraries

            quiet_libraries()
            from quartet.run import Run
            from quartet.train import train

            train(Run(Path(sys.argv[1])))
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        _hand_over(error)
        os._exit(1)  # at once: taking the process group apart would wait for the others, and they for this one


def _follow(parent: int) -> None:
    """End with the parent, whatever ended it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def _hand_over(error: Exception) -> None:
    """The error to the file that torchelastic names, whole or not at all; without one, to stderr."""
    record, name = describe(error), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if name:
        temporary = Path(f"{name}.part")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        os.replace(temporary, name)
    else:
        print(record["traceback"], file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    main()
