"""The second half of a report: what the parameters do, how runs went, what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quartet.report import figures
from quartet.report.pages import Block, Code, Heading, Paragraph, Table
from quartet.report.places import SHOWN, links, more, picture
from quartet.report.runs import STATUSES, Record, part
from quartet.report.settings import short, text, value_of
from quartet.report.statistics import importance
from quartet.report.study import Study, headline
from quartet.report.words import digits, duration
from quartet.typed import repeated

WHY = {
    "unfinished": "still running, or killed",
    "missing": "no run directory: it failed before it began, or was lost",
    "completed": "no finite value of the objective",
}


def parameters(study: Study) -> Iterator[Block]:
    runs = [(setting.values, record) for setting in study.ranked for record in setting.scored.values()]
    n = len(runs)
    stopped = {record.name for record in study.of("pruned")}
    runs += [
        (s.values, r)
        for s in study.settings
        for r in s.records
        if r.name in stopped and r.value(study.metric) is not None
    ]
    varied = [key for key in study.keys if len({repr(values[key]) for values, _ in runs}) > 1]
    if not varied or not n:
        return
    points = [{key: values[key] for key in varied} for values, _ in runs]
    scores = [record.value(study.metric) or 0.0 for _, record in runs]
    shown: Any = (points, scores, [i >= n for i in range(len(runs))], study.metric, study.mode, study.log)
    yield Heading("Parameters")
    yield from _importance(study, points[:n], scores[:n], [record for _, record in runs[:n]])
    crosses = " Crosses: pruned runs, at their best value until then." if len(runs) > n else ""
    caption = (
        "Dots: runs. Diamonds and bars: median and middle half, where values repeat. All other parameters vary too."
    )
    alt = f"{study.metric} against each of {', '.join(varied)}"
    yield picture(study, "effects", figures.effects(*shown), caption + crosses, alt)
    if len(varied) > 1:
        dotted = " Dotted: pruned." if crosses else ""
        caption = f"A line for each run: the darker, the better; the best one is dashed and thick.{dotted}"
        yield picture(study, "parallel", figures.parallel(*shown), caption, f"Parallel coordinates: {alt}")


def _importance(study: Study, points: list[dict[str, Any]], scores: list[float], runs: list[Record]) -> Iterator[Block]:
    chance = [{"seed": f"seed {record.seed}", "fold": f"fold {record.fold}"} for record in runs]
    try:
        found = importance([{**p, **c} for p, c in zip(points, chance, strict=True)], scores, study.log)
    except (ValueError, RuntimeError) as error:
        yield Paragraph(f"No importance of parameters: {error}.")
        return
    caption = (
        f"Importance of each parameter in the range that was tried: fANOVA (Hutter et al. 2014) on the ranks of the "
        f"{len(runs)} completed runs. A small share may come from a small range."
    )
    if study.of("pruned"):
        caption += " Pruned runs are not in it, so it is of the better ones."
    if {"seed", "fold"} & found.keys():
        caption += " What seed and fold have is chance."
    alt = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
    yield picture(study, "importance", figures.shares(found), caption, f"Importance: {alt}")


def curves(study: Study) -> Iterator[Block]:
    drawn = figures.curves(study.ranked, study.of("pruned"), study.metric)
    if drawn is None:
        return
    yield Heading("Learning curves")
    caption = "After each validation. The five best settings have colours, in all of their runs; the others are grey."
    crosses = " Crosses: where a run was pruned." if study.of("pruned") else ""
    yield picture(study, "curves", drawn, caption + crosses, f"{study.metric} over training; {headline(study)}")


def pruned(study: Study) -> Iterator[Block]:
    sign = 1 if study.mode == "min" else -1
    known = [(r, r.value(study.metric)) for r in study.of("pruned")]
    rows = sorted(known, key=lambda pair: float("inf") if pair[1] is None else sign * pair[1])
    if rows:
        yield Heading("Pruned runs")
        header = ["run", *short(study.keys).values(), f"best {study.metric}", "steps", "time"]
        caption = f"Stopped early, as others were better at that point; best first{more(rows)}"
        yield Table(caption, header, [
            [links(study, r), *_values(study, r), digits(v), f"{r.number('steps'):,.0f}", duration(r.number("seconds"))]
            for r, v in rows[:SHOWN]
        ])  # fmt: skip


def lost(study: Study) -> Iterator[Block]:
    scored = {record.name for setting in study.settings for record in setting.records if record.status == "completed"}
    scored -= {r.name for r in study.of("completed") if any(r.value(metric) is None for metric in study.objectives)}
    others = [r for r in study.collection.records if r.status != "pruned" and r.name not in scored]
    if others:
        yield Heading("Runs without a result")
        rows = [
            [links(study, r), *_values(study, r), r.status, r.reason or WHY.get(r.status, "")] for r in others[:SHOWN]
        ]
        yield Table(f"Not in the ranking{more(others)}", ["run", *short(study.keys).values(), "status", "why"], rows)


def cost(study: Study) -> Iterator[Block]:
    groups = {status: found for status in STATUSES if (found := [r for r in study.of(status) if r.result])}
    if not groups:
        return
    everyone = [record for records in groups.values() for record in records]
    yield Heading("Time and cost")
    rows = [_cost_row(status, records) for status, records in groups.items()]
    header = ["status", "runs", "training in all", "mean of a run", "longest", "steps in all", "peak memory"]
    caption = "Times are those of fitting with its validations, added up also where runs were side by side"
    yield Table(caption, header, rows if len(rows) == 1 else [*rows, _cost_row("all", everyone)])
    drawn = figures.cost(everyone, study.metric)
    if drawn is not None:
        alt = f"{study.metric} against seconds of training"
        yield picture(study, "time", drawn, "What a run took, and what came of it.", alt)


def _cost_row(name: str, records: Sequence[Record]) -> list[str]:
    seconds = [record.number("seconds") for record in records]
    memory = max(record.number("peak_memory_bytes") for record in records)
    steps = sum(record.number("steps") for record in records)
    times = map(duration, (sum(seconds), sum(seconds) / len(seconds), max(seconds)))
    return [name, str(len(records)), *times, f"{steps:,.0f}", f"{memory / 2**30:.2f} GiB" if memory else "–"]


def origin(study: Study) -> Iterator[Block]:
    known = next((record.environment for record in study.collection.records if record.environment), {})
    if not known:
        return
    yield Heading("Made with")
    if study.collection.plan.get("command"):
        yield Code(repeated(map(str, study.collection.plan["command"]), sweep=True))
    packages = ", ".join(f"{name} {version}" for name, version in part(known, "packages").items())
    git = part(known, "git")
    changed = ", changed since" if git.get("dirty") else ""
    state = f"commit {str(git.get('commit'))[:12]}{changed}" if git else "no git"
    yield Paragraph(
        f"{known.get('processor')}, {known.get('cores')} cores; Python {known.get('python')}, {packages}; {state}."
    )


def _values(study: Study, record: Record) -> list[str]:
    return [text(value_of(record, key)) if record.config or record.overrides else "–" for key in study.keys]
