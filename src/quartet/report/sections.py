"""What a report says: the blocks of its page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from quartet.report import figures
from quartet.report.pages import Block, Cell, Code, Heading, Items, Link, Paragraph, Picture, Table
from quartet.report.runs import STATUSES, Record, command
from quartet.report.settings import Setting, short, text, value_of
from quartet.report.statistics import Comparison, estimate, importance
from quartet.report.study import Study, again, headline
from quartet.report.words import counted, digits, duration, interval, probability, uncertain

SHOWN = 20  # settings in the ranking; runs.csv has all of them
OPTIMISTIC = (
    "Each value is that of the run's best validation, and the settings were chosen by it: expect it to be a little better "
    "than on data nobody has looked at. The test part answers that, once: test_winner=true."
)


def blocks(study: Study) -> list[Block]:
    sections: tuple[Callable[[Study], Iterator[Block]], ...] = (
        opening, caveats, reproduction, ranking, pareto, comparison, folds, test, effects, curves, losses, cost, origin,
    )  # fmt: skip
    return [block for section in sections for block in section(study)]


def opening(study: Study) -> Iterator[Block]:
    yield Paragraph(headline(study), strong=True)
    plan = study.collection.plan
    goals = " and ".join(
        f"{metric} ({'lower' if mode == 'min' else 'higher'} is better)" for metric, mode in study.objectives.items()
    )
    facts = [f"{len(study.collection.records)} runs: {counted(study.collection.records)}.", f"Ranked by {goals}."]
    if plan.get("sampler"):
        pruner = plan.get("pruner")
        facts.append(
            f"Sampler {plan['sampler']}, {f'pruner {pruner}' if pruner else 'no pruner'}, planned: {plan.get('n_trials', '?')} runs."
        )
    yield Paragraph(" ".join(facts))
    if plan.get("space"):
        yield Table(
            "What was varied", ["parameter", "values"], [[key, str(words)] for key, words in plan["space"].items()]
        )


def caveats(study: Study) -> Iterator[Block]:
    notes = list(_caveats(study))
    if notes:
        yield Heading("What can and cannot be concluded")
        yield Items(notes)


def _caveats(study: Study) -> Iterator[str]:
    counts = [len(setting.scored) for setting in study.ranked]
    if not counts:
        return
    if max(counts) == 1 and len(counts) > 1:
        yield "One seed for each setting: a difference may be chance. Repeat the best settings with seed=0,1,2,3,4."
    elif max(counts) == 1:
        yield "One run: it says nothing about how much chance there is in it. Repeat it with seed=0,1,2,3,4."
    elif min(counts) < max(counts):
        yield f"Settings have from {min(counts)} to {max(counts)} runs; a mean of few is more easily lucky. The column n says how many."
    if any(len({fold for _, fold in setting.scored}) > 1 for setting in study.ranked):
        yield (
            "Folds share most of their training data, so their values are not independent and the intervals of means are "
            "too narrow; the comparison below corrects for it (Nadeau & Bengio 2003)."
        )
    elif max(counts) > 1:
        yield "Seeds vary the training on one and the same split: the intervals say nothing about other data."
    if study.other_data:
        yield (
            f"Settings differ in {', '.join(study.other_data)}: they were validated on different samples, so their values "
            "do not compare as they stand, and there is no paired comparison."
        )
    if "data.tokenizer" in study.keys and any(name in study.objectives for name in ("val/loss", "val/perplexity")):
        yield "Losses are for each token and tokenizers differ: compare val/bits_per_byte instead (monitor.metric=val/bits_per_byte)."
    repeated = sum(setting.repeated for setting in study.ranked)
    if repeated:
        yield f"{repeated} completed runs repeat a setting with the same seed and fold, or have no finite value; they are not counted."
    if len(study.ranked) > 1:
        yield OPTIMISTIC


def reproduction(study: Study) -> Iterator[Block]:
    if study.winner is None:
        return
    one, all_runs = again(study.winner)
    yield Heading("Reproduce the winner")
    if one is None:
        where = study.winner.best.directory.name
        yield Paragraph(
            f"The command of run {study.winner.best.name} was not kept; {where}/config.yaml holds all of its settings."
        )
        return
    if all_runs:
        yield Paragraph(f"All {len(study.winner.scored)} runs of the setting:")
        yield Code(all_runs)
    best = study.winner.best
    yield Paragraph(f"Run {best.name}, its best ({study.metric} {digits(best.value(study.metric))}):")
    yield Code(one)


def ranking(study: Study) -> Iterator[Block]:
    if not study.ranked:
        return
    yield Heading("Ranking")
    names = short(study.keys)
    header = ["", *(names[key] for key in study.keys)]
    for metric in study.objectives:
        header += [f"{metric} mean ± std", "95 % interval"]
    rows = [_ranking_row(study, rank, setting) for rank, setting in enumerate(study.ranked[:SHOWN], 1)]
    more = f"; the best {SHOWN} of {len(study.ranked)}, all of them in runs.csv" if len(study.ranked) > SHOWN else ""
    yield Table(f"Settings by the mean of {study.metric} over seeds and folds{more}", [*header, "n", "runs"], rows)
    if len(study.ranked) > 1:
        drawn = figures.ranking(study.ranked, study.metric, study.mode)
        alt = "; ".join(
            f"{i}. {s.name}: {uncertain(s.estimate(study.metric))}" for i, s in enumerate(study.ranked[:5], 1)
        )
        caption = "Dot: mean, bar: its 95 % interval (from two runs on), ticks: the single runs."
        yield _picture(study, "ranking", drawn, caption, f"{study.metric} of the best settings. {alt}")


def _ranking_row(study: Study, rank: int, setting: Setting) -> list[Cell]:
    values: list[Cell] = [text(setting.values[key]) for key in study.keys]
    for metric in study.objectives:
        e = setting.estimate(metric)
        values += [uncertain(e), interval(e)]
    n, begun = len(setting.scored), len(setting.records) - setting.repeated
    links = tuple(_link(study, record) for record in setting.scored.values())
    return [str(rank), *values, str(n) if n == begun else f"{n} of {begun}", links]


def pareto(study: Study) -> Iterator[Block]:
    if len(study.objectives) < 2 or not study.ranked:
        return
    yield Heading("Pareto front")
    yield Paragraph("No other setting is better in one objective without being worse in another; the choice is yours.")
    best = [study.ranked[i] for i in study.front]
    rows = [
        [str(i + 1), s.name, *(uncertain(s.estimate(m)) for m in study.objectives)]
        for i, s in zip(study.front, best, strict=True)
    ]
    yield Table("Settings on the front, numbered as in the ranking", ["", "setting", *study.objectives], rows)
    drawn = figures.trade_off(study.ranked, study.front, study.objectives)
    names = "; ".join(setting.name for setting in best)
    yield _picture(study, "pareto", drawn, "Diamonds: the front, numbered as in the ranking.", f"On the front: {names}")
    yield Table(
        "Their commands",
        ["", "command"],
        [[str(i + 1), again(s)[0] or "–"] for i, s in zip(study.front, best, strict=True)],
    )


def comparison(study: Study) -> Iterator[Block]:
    found = study.comparison
    if found is None:
        return
    first, second = study.ranked[:2]
    yield Heading("The best two, compared in pairs")
    e = found.difference
    values = [
        "–" if not e.n else digits(e.mean),
        interval(e),
        probability(found.t_test),
        probability(found.wilcoxon),
        str(e.n),
    ]
    header = [f"{study.metric}, difference", "95 % interval", "paired t-test p", "Wilcoxon p", "pairs"]
    yield Table(f"{first.name} minus {second.name}, over runs with the same seed and fold", header, [values])
    yield Paragraph(verdict(found))


def verdict(found: Comparison) -> str:
    if found.why:
        return f"No test: {found.why}."
    assert found.t_test is not None
    clear = "is larger than chance explains" if found.t_test < 0.05 else "may be chance"
    words = [f"The difference {clear} (p = {probability(found.t_test)})."]
    if found.corrected:
        words.append("Interval and t-test are corrected for the training data that folds share (Nadeau & Bengio 2003).")
    if found.wilcoxon is None:
        words.append("Wilcoxon's test takes six pairs that differ.")
    return " ".join([*words, "p takes no account of having picked the best two of several."])


def folds(study: Study) -> Iterator[Block]:
    if not study.out_of_fold:
        return
    yield Heading("Out of fold")
    yield Paragraph(
        "The validation predictions of all folds, each by the best checkpoint of its own fold, are pooled and every metric is "
        "computed once on them. A mean over folds weighs folds alike and is another number for metrics that are no means."
    )
    for setting in study.ranked:
        found = study.out_of_fold.get(setting.name, {})
        if isinstance(found, str):
            yield Paragraph(f"{setting.name}: not computed, {found}")
            continue
        for seed, (metrics, n) in found.items():
            runs = [record for (s, _), record in setting.scored.items() if s == seed]
            over = {name: estimate([v for r in runs if (v := r.value(name)) is not None]) for name in metrics}
            rows = [
                [name, digits(value), uncertain(over[name])]
                for name, value in metrics.items()
                if name.startswith("val/")
            ]
            caption = f"{setting.name}, seed {seed}: {n:,} samples, {len(runs)} folds"
            yield Table(caption, ["metric", "out of fold", "mean ± std over folds"], rows)


def test(study: Study) -> Iterator[Block]:
    if not study.tested:
        return
    yield Heading("Test")
    runs = list(study.tested["runs"].values())
    yield Paragraph(
        f"{study.tested['setting']} was scored on the test part, once, on {study.tested['created']}; test.json keeps it."
    )
    if study.winner and study.winner.name != study.tested["setting"]:
        yield Paragraph(
            f"The winner is {study.winner.name} by now; it is not tested, as a test part is for one look only."
        )
    names = [name for name in (runs[0] if runs else {}) if name.startswith("test/")]
    over = {name: estimate([run[name] for run in runs if name in run]) for name in names}
    rows = [[name, uncertain(e), interval(e), str(e.n)] for name, e in over.items()]
    yield Table("The winner on the test part", ["metric", "mean ± std", "95 % interval", "n"], rows)


def effects(study: Study) -> Iterator[Block]:
    runs = [(setting.values, record) for setting in study.ranked for record in setting.scored.values()]
    varied = [key for key in study.keys if len({repr(values[key]) for values, _ in runs}) > 1]
    if not varied:
        return
    scores = [record.value(study.metric) or 0.0 for _, record in runs]
    points = [{key: values[key] for key in varied} for values, _ in runs]
    yield Heading("Parameters")
    yield from _importance(study, points, scores, [record for _, record in runs])
    caption = "Every dot is a run; diamonds and bars: mean and 95 % interval where values repeat. All other parameters vary too."
    if study.of("pruned"):
        caption += " Pruned runs are left out."
    drawn = figures.effects(points, scores, study.metric, study.mode, study.log)
    yield _picture(study, "effects", drawn, caption, f"{study.metric} against each of {', '.join(varied)}")
    if len(varied) > 1:
        drawn = figures.parallel(points, scores, study.metric, study.mode, study.log)
        caption = "Every line is a run; darker is better, the best one is dashed and thick."
        yield _picture(
            study, "parallel", drawn, caption, f"Parallel coordinates of {', '.join(varied)} and {study.metric}"
        )


def _importance(study: Study, points: list[dict[str, Any]], scores: list[float], runs: list[Record]) -> Iterator[Block]:
    chance = [{"seed": str(record.seed), "fold": str(record.fold)} for record in runs]
    try:
        found = importance([{**p, **c} for p, c in zip(points, chance, strict=True)], scores, study.log)
    except (ValueError, RuntimeError) as error:
        yield Paragraph(f"No importance: {error}.")
        return
    caption = (
        f"Importance of each parameter over the range that was tried (fANOVA on the ranks of {len(runs)} completed runs, "
        "Hutter et al. 2014). A small share can also mean that the range was small."
    )
    if {"seed", "fold"} & found.keys():
        caption += " What seed and fold have is chance."
    alt = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
    yield _picture(study, "importance", figures.shares(found), caption, f"Importance: {alt}")


def curves(study: Study) -> Iterator[Block]:
    drawn = figures.curves(study.ranked, study.of("pruned"), study.metric)
    if drawn is None:
        return
    yield Heading("Learning curves")
    caption = "After each validation. The five best settings have colours and markers, all of their runs; the others are grey."
    if study.of("pruned"):
        caption += " Crosses: where a run was pruned."
    yield _picture(study, "curves", drawn, caption, f"{study.metric} over training, {len(study.ranked)} settings")


def losses(study: Study) -> Iterator[Block]:
    pruned, names = study.of("pruned"), short(study.keys)
    settings = [names[key] for key in study.keys]
    if pruned:
        yield Heading("Pruned runs")
        rows = [[_link(study, r), *_values(study, r), digits(r.value(study.metric)), f"{r.number('steps'):,.0f}", duration(r.number("seconds"))] for r in pruned]  # fmt: skip
        yield Table(
            "Stopped early, as others were better at that point",
            ["run", *settings, f"best {study.metric}", "steps", "time"],
            rows,
        )
    others = [record for record in study.collection.records if record.status not in ("completed", "pruned")]
    hollow = [r for r in study.of("completed") if any(r.value(metric) is None for metric in study.objectives)]
    if others or hollow:
        yield Heading("Runs without a result")
        why = {
            "unfinished": "still running, or killed",
            "missing": "no run directory: it failed before it began, or was lost",
        }
        rows = [[_link(study, r), *_values(study, r), r.status, r.reason or why.get(r.status, "")] for r in others]
        rows += [[_link(study, r), *_values(study, r), r.status, "no finite value of the objective"] for r in hollow]
        yield Table("Not in the ranking", ["run", *settings, "status", "why"], rows)


def cost(study: Study) -> Iterator[Block]:
    groups = {status: found for status in STATUSES if (found := [r for r in study.of(status) if r.result])}
    if not groups:
        return
    yield Heading("Time and cost")
    rows = [_cost_row(status, records) for status, records in groups.items()]
    if len(groups) > 1:
        rows.append(_cost_row("all", [record for records in groups.values() for record in records]))
    header = ["status", "runs", "training in all", "mean of a run", "longest", "steps in all", "peak memory"]
    yield Table(
        "Seconds are those of fitting with its validations, summed over runs also where they ran side by side",
        header,
        rows,
    )
    drawn = figures.cost(groups, study.metric)
    yield _picture(
        study, "time", drawn, "What a run cost and what came of it.", f"{study.metric} against seconds of training"
    )


def _cost_row(name: str, records: Sequence[Record]) -> list[Cell]:
    seconds = [record.number("seconds") for record in records]
    memory = max(record.number("peak_memory_bytes") for record in records)
    times = map(duration, (sum(seconds), sum(seconds) / len(seconds), max(seconds)))
    steps = sum(record.number("steps") for record in records)
    return [name, str(len(records)), *times, f"{steps:,.0f}", f"{memory / 2**30:.2f} GiB" if memory else "–"]


def origin(study: Study) -> Iterator[Block]:
    known = next((record.environment for record in study.collection.records if record.environment), {})
    if not known:
        return
    yield Heading("Made with")
    if study.collection.plan.get("command"):
        yield Code(command(map(str, study.collection.plan["command"]), sweep=True))
    packages = ", ".join(f"{name} {version}" for name, version in (known.get("packages") or {}).items())
    git = known.get("git") or {}
    state = (
        f"commit {str(git['commit'])[:12]}{', with changes that are in no commit' if git.get('dirty') else ''}"
        if git
        else "no git"
    )
    yield Paragraph(
        f"{known.get('processor')}, {known.get('cores')} cores, Python {known.get('python')}, {packages}; {state}."
    )


def _values(study: Study, record: Record) -> list[Cell]:
    return [text(value_of(record, key)) if record.config else "–" for key in study.keys]


def _link(study: Study, record: Record) -> Cell:
    """To the run, where there is one to go to from the page."""
    if not record.directory.is_dir():
        return record.name
    return Link(record.name, Path(os.path.relpath(record.directory, study.output)).as_posix() + "/")


def _picture(study: Study, name: str, drawn: Any, caption: str, alt: str) -> Picture:
    return Picture(figures.save(drawn, study.output / "figures" / f"{name}.png"), caption, alt)
