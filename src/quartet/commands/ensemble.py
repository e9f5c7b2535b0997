"""Combine finished runs into one run that predicts better than each of them."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy import ndarray as Array
from omegaconf import DictConfig, OmegaConf

from quartet import build, pages
from quartet.config import plain
from quartet.files import written
from quartet.inference.ensemble import Combination, combined, facts, fit_combination
from quartet.inference.language import is_language_model
from quartet.inference.parts import Predicted, predict_part
from quartet.run import ENSEMBLE, Run, find_sweep, refuse_links_out, signature
from quartet.say import printable, say
from quartet.signatures import Rule, refuse, wrong_settings
from quartet.typed import argument, command, user_path

SETTINGS: dict[str, Any] = {
    "runs": Annotated[
        list[str], Rule("two or more runs, a glob of them, or a sweep, as in runs='outputs/sweeps/<time>/*'", bool)
    ],
    "method": Literal["mean", "weighted", "greedy", "stack"],
}
SPLIT = ("split", "split_seed", "folds", "split_column", "group")  # keys of data that decide who validates


def ensemble(arguments: DictConfig) -> None:
    """Make a run directory that combines runs, and print what each is worth on validation.

    Raises ValueError for fewer than two runs, and for runs with other classes or another split.
    """
    given = plain(arguments)
    listed = given["runs"] if isinstance(given["runs"], list) else [] if given["runs"] is None else [str(given["runs"])]
    method = given["method"]
    refuse(wrong_settings(SETTINGS, {"runs": listed, "method": method}))
    # 1. the runs, and which of them are folds of one setting
    members = find_members(listed)
    configs = [build.opened(run) for run in members]
    folds = check_agreement(members, configs)
    groups = [[i] for i in range(len(members))]
    if folds:
        settings = [f"{signature(config)} {config.seed}" for config in configs]
        groups = [[i for i, own in enumerate(settings) if own == one] for one in dict.fromkeys(settings)]
        incomplete = [
            group for group in groups if {configs[i].data.fold for i in group} != {*range(configs[0].data.folds)}
        ]
        if incomplete and method != "mean":
            raise ValueError(
                f"method={method} needs every fold of each setting: {members[incomplete[0][0]]} has "
                f"{len(incomplete[0])} of {configs[0].data.folds}; train the others, or take method=mean"
            )
    say(
        f"{len(members)} runs: {', '.join(printable(str(run)) for run in members[:4])}{' …' if len(members) > 4 else ''}"
    )
    # 2. what they predict on validation, each on its own fold
    predicted = validation(members, required=method != "mean")
    combination = Combination(method, groups, [1 / len(groups)] * len(groups))
    if predicted:
        out_of_fold, target = by_group(predicted, groups)
        if method != "mean":
            combination = fit_combination(method, groups, out_of_fold, target)
    # 3. a run directory of copies
    run = write_ensemble(members, configs[0], combination, folds=folds)
    # 4. what came of it
    if predicted and not folds:
        whole = combined(predicted, combination)
        show(members, predicted, whole, combination)
        metrics = {f"val{name}": value for name, value in whole.metrics.items()}
        run.write("result.json", {"status": "completed", "metrics": metrics, "method": method})
    else:
        run.write("result.json", {"status": "completed", "metrics": {}, "method": method})
    print(f"next:\n  {command('evaluate', argument('run', run), 'split=test')}")


def find_members(words: Sequence[str]) -> list[Run]:
    """The completed runs that these words name; ValueError for fewer than two, or a name that is none."""
    found: dict[str, Run] = {}
    for word in words:
        if word == "latest":
            word = str(find_sweep("latest", planned=True))
        place = user_path(word)
        paths = [place] if os.path.isdir(place) else sorted(glob.glob(place, recursive=True))
        # a sweep is a folder of runs
        inside = [path for path in paths if os.path.isfile(os.path.join(path, "sweep.json"))]
        paths += [os.path.join(path, name) for path in inside for name in os.listdir(path)]
        runs = [Run(Path(path)) for path in paths if os.path.isfile(os.path.join(path, "config.yaml"))]
        if not runs:
            raise ValueError(f"runs={word}: no run there; name run directories, a glob of them, or a sweep")
        found |= {str(run.directory): run for run in runs}
    whole = []
    for run in sorted(found.values(), key=lambda run: (len(run.directory.name), str(run.directory))):
        refuse_links_out(run.directory, "run")
        if run.status != "completed":
            print(f"left out: {printable(str(run))} is {run.status}", file=sys.stderr)
        elif (run.directory / ENSEMBLE).is_file():
            print(f"left out: {printable(str(run))} is an ensemble itself", file=sys.stderr)
        else:
            whole.append(run)
    if len(whole) < 2:
        raise ValueError(f"an ensemble needs at least two completed runs, and there are {len(whole)}")
    return whole


def check_agreement(members: Sequence[Run], configs: Sequence[DictConfig]) -> bool:
    """Whether the runs are folds; ValueError if their classes, data or splits differ."""
    facts = [run.read("preprocessing.json") for run in members]
    tasks = [config.task._target_ for config in configs]
    if any(map(is_language_model, configs)):
        raise ValueError("language models cannot be combined: an ensemble is of classifiers or of regressions")
    splits = [{key: plain(config)["data"].get(key) for key in (*SPLIT, "fold")} for config in configs]
    # folds of one split validate on different samples by design; anything else has to agree
    folds = all(split["fold"] is not None for split in splits) and len({split["fold"] for split in splits}) > 1
    for run, task, own, split in zip(members, tasks, facts, splits, strict=True):
        compared = {
            "task": (task, tasks[0]),
            "classes": (own["spec"].get("classes"), facts[0]["spec"].get("classes")),
            "data": (own.get("fingerprint"), facts[0].get("fingerprint")),
            **{f"data.{key}": (split[key], splits[0][key]) for key in (SPLIT if folds else (*SPLIT, "fold"))},
        }
        for what, (one, other) in compared.items():
            if one != other:
                raise ValueError(f"{run} and {members[0]} differ in {what}, so they cannot be combined")
    return folds


def validation(members: Sequence[Run], *, required: bool) -> list[Predicted]:
    """What each member predicts on its validation part; empty if the data are gone and they are not `required`."""
    found = []
    for i, run in enumerate(members, 1):
        try:
            found.append(predict_part(run, "val"))
        except (ValueError, OSError) as error:
            if required:
                raise
            print(f"no validation: {printable(str(error))}", file=sys.stderr)
            return []
        print(f"validated {i} of {len(members)}", flush=True)
    return found


def by_group(predicted: Sequence[Predicted], groups: list[list[int]]) -> tuple[list[Array], Array]:
    """Predictions of each group on what its members validate on, one after the other, and the targets."""
    found = [np.concatenate([predicted[i].outputs["prediction"] for i in group]) for group in groups]
    targets = [np.concatenate([predicted[i].outputs["target"] for i in group]) for group in groups]
    if any(own.shape != targets[0].shape or not np.allclose(own, targets[0]) for own in targets):
        raise ValueError("the runs do not validate on the same samples; their splits differ")
    return found, targets[0]


def write_ensemble(members: Sequence[Run], config: DictConfig, combination: Combination, *, folds: bool) -> Run:
    """A run directory with a copy of what prediction needs of each member; its config is that of the first one."""
    own: Any = OmegaConf.create(OmegaConf.to_container(config))
    own.run = {**plain(config)["run"], "name": f"ensemble-{combination.method}", "dir": None}
    run = Run.create(own)
    try:
        for i, member in enumerate(members):
            place = run.directory / "members" / str(i)
            (place / "checkpoints").mkdir(parents=True)
            for name in ("config.yaml", "preprocessing.json"):
                shutil.copyfile(member.directory / name, place / name)
            with written(place / "checkpoints" / "best.ckpt") as file, member.best_checkpoint.open("rb") as source:
                shutil.copyfileobj(source, file)
        shutil.copyfile(members[0].directory / "preprocessing.json", run.directory / "preprocessing.json")
        run.write(
            ENSEMBLE, {**facts(combination, members, folds=folds), "runs": [str(run.directory) for run in members]}
        )
    except BaseException:
        shutil.rmtree(run.directory, ignore_errors=True)
        raise
    return run


def show(members: Sequence[Run], predicted: Sequence[Predicted], whole: Predicted, combination: Combination) -> None:
    """A row for each member with its weight, the ensemble last."""
    names = [name for name in ("/loss", "/accuracy", "/f1", "/rmse", "/r2") if name in whole.metrics]
    labels = [*(run.directory.name for run in members), "ensemble"]
    # a stack has coefficients of each class instead of weights
    weights = [f"{weight:.3f}" for weight in combination.weights or ()] or [""] * len(members)
    rows = [
        [label, *(f"{one.metrics[name]:.4f}" for name in names), weight]
        for label, one, weight in zip(labels, [*predicted, whole], [*weights, ""], strict=True)
    ]
    pages.show(pages.table(["validation", *(name[1:] for name in names), "weight"], rows))
    if combination.method != "mean":
        print(
            "  the weights were fitted on this part, so its figure for the ensemble is a little too good; test is honest"
        )
