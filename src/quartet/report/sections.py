"""What a report says: the blocks of its page, and first of all what can be concluded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from quartet.report import figures
from quartet.report.details import cost, curves, lost, origin, parameters, pruned
from quartet.report.pages import Block, Code, Heading, Items, Links, Paragraph, Table
from quartet.report.places import SHOWN, links, more, picture
from quartet.report.runs import part
from quartet.report.settings import Setting, short, text
from quartet.report.statistics import Comparison, estimate
from quartet.report.study import Study, again, headline, overfitted
from quartet.report.words import counted, digits, interval, probability, uncertain

OPTIMISTIC = (
    "Each value is that of the run's best validation, and the settings were chosen by it: expect it to be a little better "
    "than on data nobody has looked at. The test part answers that, once: scripts/report.py … test_winner=true."
)


def blocks(study: Study) -> list[Block]:
    sections: tuple[Callable[[Study], Iterator[Block]], ...] = (
        opening, caveats, reproduction, ranking, pareto, comparison, folds, test,
        parameters, curves, pruned, lost, cost, origin,
    )  # fmt: skip
    return [block for section in sections for block in section(study)]


def opening(study: Study) -> Iterator[Block]:
    yield Paragraph(f"{'Best setting: ' if study.winner else ''}{headline(study)}", strong=True)
    plan, better = study.collection.plan, {"min": "lower", "max": "higher"}
    goals = " and ".join(f"{metric} ({better[mode]} is better)" for metric, mode in study.objectives.items())
    facts = f"{len(study.collection.records)} runs: {counted(study.collection.records)}. Ranked by {goals}."
    if plan.get("sampler"):
        facts += (
            f" Sampler {plan['sampler']}, pruner {plan.get('pruner') or 'none'}, {plan.get('n_trials')} runs planned."
        )
    yield Paragraph(facts)
    if part(plan, "space"):
        rows = [[key, str(words)] for key, words in part(plan, "space").items()]
        yield Table("What was varied", ["parameter", "values"], rows)


def caveats(study: Study) -> Iterator[Block]:
    notes = list(_caveats(study))
    if notes:
        yield Heading("What can and cannot be concluded")
        yield Items(notes)


def _caveats(study: Study) -> Iterator[str]:
    counts = [len(setting.scored) for setting in study.ranked]
    if not counts:
        return
    if max(counts) == 1:
        yield "One seed for each setting: a difference may be chance. Repeat the best settings with seed=0,1,2,3,4."
    elif min(counts) < max(counts):
        yield f"Settings have from {min(counts)} to {max(counts)} runs (column n); a mean of few is more easily lucky."
    if any(len({fold for _, fold in setting.scored}) > 1 for setting in study.ranked):
        yield (
            "Folds share most of their training data, so their values depend on each other and the intervals of means are "
            "too narrow; only the comparison of the best two is corrected for it (Nadeau & Bengio 2003)."
        )
    elif max(counts) > 1:
        yield "Seeds vary the training on one and the same split: the intervals say nothing about other data."
    yield from _measured_differently(study)
    repeated = sum(setting.repeated for setting in study.settings)
    if repeated:
        yield f"{repeated} completed runs repeat another one, seed and fold included, or have no finite value: not counted."
    if study.winner and (warning := overfitted(study)):
        yield warning
    if len(counts) > 1:
        yield OPTIMISTIC


def _measured_differently(study: Study) -> Iterator[str]:
    if study.other_data:
        yield (
            f"Settings differ in {', '.join(study.other_data)}: they were validated on different samples, so their values "
            "do not compare as they stand, and there is no paired comparison."
        )
    if {"task", "task.loss"} & {*study.keys} and "val/loss" in study.objectives:
        yield "Settings differ in the loss itself, so val/loss is not the same quantity: compare by another metric."
    if "data.tokenizer" in study.keys and {"val/loss", "val/perplexity"} & study.objectives.keys():
        yield "Losses are for each token and tokenizers differ: compare with monitor.metric=val/bits_per_byte instead."


def reproduction(study: Study) -> Iterator[Block]:
    if study.winner is None:
        return
    best, (one, everything) = study.winner.best, again(study.winner)
    yield Heading("Reproduce the winner")
    if one is None:
        yield Paragraph(f"The command of run {best.name} was not kept; its config.yaml holds all of its settings.")
        return
    if everything:
        yield Paragraph(f"All {len(study.winner.scored)} runs of the setting:")
        yield Code(everything)
    yield Paragraph(f"Run {best.name}, its best ({study.metric} {digits(best.value(study.metric))}):")
    yield Code(one)


def ranking(study: Study) -> Iterator[Block]:
    if not study.ranked:
        return
    yield Heading("Ranking")
    means = [f"{metric} mean ± std" for metric in study.objectives]
    spread = ["95 % interval"] * len(means)
    rows = [_ranking_row(study, place, setting) for place, setting in enumerate(study.ranked[:SHOWN], 1)]
    caption = f"Settings by the mean of {study.metric} over seeds and folds{more(study.ranked)}"
    yield Table(caption, ["", *means, *short(study.keys).values(), *spread, "n", "runs"], rows)
    if len(study.ranked) > 1:
        drawn = figures.ranking(study.ranked, study.metric, study.mode)
        alt = "; ".join(
            f"{i}. {s.name}: {uncertain(s.estimate(study.metric))}" for i, s in enumerate(study.ranked[:5], 1)
        )
        caption = "Dot: mean (diamond: the best), bar: its 95 % interval from two runs on, ticks: the single runs."
        yield picture(study, "ranking", drawn, caption, f"{study.metric} of the best settings. {alt}")


def _ranking_row(study: Study, place: int, setting: Setting) -> list[str | Links]:
    estimates = [setting.estimate(metric) for metric in study.objectives]
    n, begun = len(setting.scored), len(setting.records) - setting.repeated
    return [
        str(place),
        *map(uncertain, estimates),
        *(text(setting.values[key]) for key in study.keys),
        *map(interval, estimates),
        str(n) if n == begun else f"{n} of {begun}",
        links(study, *setting.scored.values()),
    ]


def pareto(study: Study) -> Iterator[Block]:
    if len(study.objectives) < 2 or not study.ranked:
        return
    yield Heading("Pareto front")
    yield Paragraph("No other setting is better in one objective without being worse in another; the choice is yours.")
    best = [(place, study.ranked[place]) for place in study.front]
    drawn = figures.trade_off(study.ranked, study.front, study.objectives)
    alt = "On the front: " + "; ".join(setting.name for _, setting in best)
    yield picture(study, "pareto", drawn, "Diamonds: the front, numbered as in the ranking.", alt)
    rows = [[str(place + 1), setting.name, again(setting)[0] or "–"] for place, setting in best]
    yield Table("The front and its commands, numbered as in the ranking", ["", "setting", "command"], rows)


def comparison(study: Study) -> Iterator[Block]:
    found = study.comparison
    if found is None:
        return
    first, second = study.ranked[:2]
    yield Heading("The best two, compared in pairs")
    e = found.difference
    numbers = [digits(e.mean), interval(e), probability(found.t_test), probability(found.wilcoxon), str(e.n)]
    header = [f"{study.metric}, mean difference", "95 % interval", "p, paired t-test", "p, Wilcoxon", "pairs"]
    caption = f"{first.name} minus {second.name}, over runs with the same seed and fold"
    yield Table(caption, header, [numbers])
    yield Paragraph(verdict(found))


def verdict(found: Comparison) -> str:
    if found.t_test is None:
        return f"No test: {found.why}."
    chance = "is more than chance explains" if found.t_test < 0.05 else "may be chance"
    words = [f"The difference {chance} at the level of 5 %."]
    if found.corrected:
        words.append("Interval and t-test are corrected for the training data that folds share (Nadeau & Bengio 2003).")
    if found.wilcoxon is None:
        words.append("Wilcoxon's test takes six pairs that differ.")
    return " ".join([*words, "p takes no account of these two having been picked as the best of several."])


def folds(study: Study) -> Iterator[Block]:
    if not study.out_of_fold:
        return
    yield Heading("Out of fold")
    yield Paragraph(
        "The validation predictions of all folds, each by the best checkpoint of its own fold, are pooled, and every metric "
        "is computed once on all of them; a mean over folds is another number for metrics that are no means."
    )
    for name, found in study.out_of_fold.items():
        if isinstance(found, str):
            yield Paragraph(f"{name}: not computed. {found}")
            continue
        for seed, (metrics, n, records) in found.items():
            over = {m: estimate([v for r in records if (v := r.value(m)) is not None]) for m in metrics}
            rows = [[m, digits(value), uncertain(over[m])] for m, value in metrics.items() if m.startswith("val/")]
            caption = f"{name}, seed {seed}: {n:,} samples in {len(records)} folds"
            yield Table(caption, ["metric", "out of fold", "mean ± std over folds"], rows)


def test(study: Study) -> Iterator[Block]:
    if not study.tested:
        return
    yield Heading("Test")
    name, created, runs = study.tested["setting"], study.tested["created"], list(study.tested["runs"].values())
    yield Paragraph(f"{name} was scored on the test part once, on {created}; test.json keeps it.")
    if study.winner and study.winner.name != name:
        yield Paragraph(
            f"The winner is {study.winner.name} by now. It is not tested: a test part is for one look only."
        )
    metrics = [metric for metric in (runs[0] if runs else {}) if metric.startswith("test/")]
    over = {metric: estimate([run[metric] for run in runs if metric in run]) for metric in metrics}
    rows = [[metric, uncertain(e), interval(e), str(e.n)] for metric, e in over.items()]
    yield Table("The tested setting", ["metric", "mean ± std", "95 % interval", "n"], rows)
