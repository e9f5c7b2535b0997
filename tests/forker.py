"""Runs scripts as a user starts them, each in a process of its own, forked where torch has been imported already.

Orders come as lines of JSON on standard input: to start a script, answered by its process id, and to wait for one, answered
by its exit code. A script's own start takes a few seconds of a processor, and the suite starts a hundred of them.
"""

import atexit
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import quartet.commands.evaluate
import quartet.commands.generate
import quartet.commands.train
import quartet.sweeps.preload  # noqa: F401


def run(order: dict) -> int:
    """In the child: the process is that of a user who types the command."""
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = order["command"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def wait(pid: int, timeout: int) -> int | None:
    """The exit code; None if it has not ended and the timeout is 0, else it is killed after so many seconds."""
    if timeout == 0:
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(pid, signal.SIGKILL))
    signal.alarm(timeout)
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            print(json.dumps(wait(order["pid"], order["timeout"])), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = run(order)
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
