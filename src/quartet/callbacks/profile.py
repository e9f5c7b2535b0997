"""`trainer.profiler=simple|advanced|pytorch`: Lightning's profilers, whose findings are a table that a person can read."""

from __future__ import annotations

import pstats
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from quartet.files import written
from quartet.say import columns, printable, say

FILE, TRACE = "profile.txt", "trace.json.gz"
SHOWN = 10  # lines on the terminal
LONGEST_NAME = 70  # characters there


class Line(NamedTuple):
    name: str
    calls: int
    seconds: float


class Profile(Callback):
    """Writes `profile.txt` when training ends, however it ends, and shows its most expensive lines.

    simple    what Lightning does, and how long it took; actions contain each other
    advanced  Python's functions, by the time spent in each of them itself (cProfile: training is slower)
    pytorch   operators of three steps, by their own time, on the GPU where there is one; the steps are also in
              `trace.json.gz`, to be opened with ui.perfetto.dev or chrome://tracing
    """

    def __init__(self, kind: Literal["simple", "advanced", "pytorch"], directory: Path):
        self.kind, self.directory = kind, directory
        self.profiler: Profiler = {
            "simple": SimpleProfiler,
            "advanced": AdvancedProfiler,
            "pytorch": lambda: PyTorchProfiler(on_trace_ready=self._keep),
        }[kind]()
        self._trainer: Trainer | None = None
        self._start = time.perf_counter()
        self._operators: list[Line] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._report(trainer)
            # Lightning would print all of it, and profile the test too
            trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit":
            with suppress(Exception):  # the error itself matters more
                self._report(trainer)

    def _keep(self, profiler: Any) -> None:
        """What torch's profiler has recorded; of the training steps, validation has a record of its own."""
        if self._operators or self._trainer is None or self._trainer.validating or not self._trainer.is_global_zero:
            return
        averages = profiler.key_averages()
        on_gpu = any(event.self_device_time_total for event in averages)
        for event in averages:
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            # torch's name for the whole step, of which this is the part outside of operators
            name = "Python" if event.key.startswith("ProfilerStep") else event.key
            self._operators.append(Line(name, event.count, microseconds / 1e6))
        profiler.export_chrome_trace(str(self.directory / TRACE))

    def _report(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        # 1. the lines, the most expensive first, and the time that they are shares of
        whole, lines, details = time.perf_counter() - self._start, [], ""
        if isinstance(self.profiler, SimpleProfiler):
            lines = [Line(name, len(times), sum(times)) for name, times in self.profiler.recorded_durations.items()]
        elif isinstance(self.profiler, AdvancedProfiler):
            lines, details = _functions(self.profiler), self.profiler.summary()
            whole = sum(line.seconds for line in lines)
        else:
            self.profiler.summary()  # ends what it still records
            lines, whole = self._operators, sum(line.seconds for line in self._operators)
        if not lines:
            say(f"trainer.profiler={self.kind} recorded nothing: training was too short for it (five batches)")
            return
        lines = sorted(lines, key=lambda line: -line.seconds)

        # 2. all of them in the file, a few on the terminal
        head = f"trainer.profiler={self.kind}: {whole:.4g} s"
        with written(self.directory / FILE) as file:
            text = f"{head}\n\n{_table(lines, whole, None)}\n\n{details}".rstrip() + "\n"
            file.write(text.encode("utf-8", "backslashreplace"))
        say(f"\n{head}, all of it in {self.directory / FILE}")
        print(
            "\n".join(f"  {printable(row)}" for row in _table(lines[:SHOWN], whole, LONGEST_NAME).splitlines()),
            flush=True,
        )


def _functions(profiler: AdvancedProfiler) -> list[Line]:
    """Python's functions with their own seconds, over all actions."""
    found: dict[str, Line] = {}
    for profile in profiler.profiled_actions.values():
        with suppress(TypeError):  # nothing was called in it
            stats: Any = pstats.Stats(profile)
            for (file, line, function), (_, calls, own, _, _) in stats.stats.items():
                if "_lsprof" in function:
                    continue  # the profiler itself
                place = "/".join(Path(file).parts[-2:])
                name = f"{place}:{line} {function}" if line else function
                before = found.get(name, Line(name, 0, 0.0))
                found[name] = Line(name, before.calls + calls, before.seconds + own)
    return list(found.values())


def _table(lines: list[Line], whole: float, longest: int | None) -> str:
    rows = [("", "calls", "ms a call", "seconds", "share")]
    for name, calls, seconds in lines:
        short = name if longest is None or len(name) <= longest else f"{name[: longest - 1]}…"
        rows.append((short, f"{calls:,}", f"{1000 * seconds / calls:.4g}", f"{seconds:.3f}", f"{seconds / whole:.1%}"))
    return columns(rows, left=1)
