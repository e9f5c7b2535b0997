"""Metrics are scikit-learn's in float64 whatever the unit, the classes that occur and the batches; or there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from quartet.callbacks.figures import regression_figure
from quartet.config import DIRECTIONS
from quartet.data.spec import Spec
from quartet.tasks.classification import Classification, binary_cross_entropy
from quartet.tasks.language_modeling import LanguageModeling
from quartet.tasks.metrics import argmax
from quartet.tasks.regression import Regression

CASES = settings(max_examples=200, deadline=None, derandomize=True)
PLAIN = {"l1": 0.0, "l2": 0.0}


class Given(torch.nn.Module):
    """Returns its input: the test decides what is predicted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def logged(task, outputs: torch.Tensor, target: torch.Tensor, batch_size: int) -> dict[str, float]:
    values: dict[str, float] = {}
    task.log = lambda name, value, **_: values.update({name: float(value)})
    task.log_dict = lambda found, **_: values.update({name: float(value) for name, value in found.items()})
    for x, y in zip(outputs.split(batch_size), target.split(batch_size), strict=True):
        task.step({"inputs": {"x": x}, "target": y, "index": torch.arange(len(y))}, "val")
    task.log_metrics("val")
    return values


# regression


def regression(mean: float, std: float) -> Regression:
    spec = Spec(sizes={}, target_mean=mean, target_std=std)
    return Regression(network=Given(), spec=spec, loss="mean_squared_error", **PLAIN)


@CASES
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 80),
    offset=st.sampled_from([0.0, 2_000.0, -1e5, 1e9]),
    factor=st.sampled_from([1e-6, 1e-5, 5e-4, 1.0, 1e6]),
    noise=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    ties=st.booleans(),
    batch_size=st.integers(1, 32),
)
def test_regression_is_scikit_learn_s(seed, n, offset, factor, noise, ties, batch_size):
    random = np.random.default_rng(seed)
    target = random.normal(size=n).round(0 if ties else 9).astype(np.float32)
    prediction = (target + noise * random.normal(size=n)).astype(np.float32)
    task = regression(offset, factor)
    values = logged(task, torch.from_numpy(prediction)[:, None], torch.from_numpy(target), batch_size)
    true, predicted = (x.astype(np.float64) * factor for x in (target, prediction))  # no offset: it would round
    assert values["val/rmse"] == pytest.approx(sk.root_mean_squared_error(true, predicted), rel=1e-5, abs=1e-9 * factor)
    assert values["val/mae"] == pytest.approx(sk.mean_absolute_error(true, predicted), rel=1e-5, abs=1e-9 * factor)
    assert ("val/r2" in values) == (len(set(target)) > 1) == ("r2" not in task.undefined(torch.from_numpy(target)))
    if "val/r2" in values:
        assert values["val/r2"] == pytest.approx(sk.r2_score(true, predicted), rel=1e-5, abs=1e-6)


def test_what_figures_are_given_keeps_its_digits_beside_a_large_offset():
    output = torch.tensor([[0.5], [-1.0]])
    batch = {"inputs": {"x": output}, "target": torch.tensor([0.25, -1.0]), "index": torch.arange(2)}
    _, found = regression(1e9, 1e-3).step(batch, "val")
    assert (found["prediction"] - found["target"]).tolist() == pytest.approx([2.5e-4, 0], abs=2e-7)


@pytest.mark.parametrize("target", [[3.0], [3.0, 3.0]])
def test_a_figure_of_targets_without_spread_names_no_r2(target):
    figure = regression_figure(np.array(target) + 1, np.array(target), "validation")
    assert "R²" not in figure.axes[0].get_title()


# classification


def classification(n_classes: int) -> Classification:
    names = tuple(f"c{i}" for i in range(n_classes))
    spec = Spec(sizes={}, classes=names, class_counts=(1,) * n_classes)
    return Classification(
        network=Given(), spec=spec, loss="cross_entropy", label_smoothing=0.0, class_weights=None, **PLAIN
    )


@CASES
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 80),
    n_classes=st.integers(2, 6),
    occurring=st.integers(1, 6),
    ties=st.booleans(),
    batch_size=st.integers(1, 32),
)
def test_classification_is_scikit_learn_s_over_the_classes_that_occur(seed, n, n_classes, occurring, ties, batch_size):
    random = np.random.default_rng(seed)
    target = random.permutation(n_classes)[:occurring][random.integers(min(occurring, n_classes), size=n)]
    logits = random.normal(size=(n, n_classes)) + 1.5 * np.eye(n_classes)[target]
    logits = torch.from_numpy(logits.round(0 if ties else 9)).float()
    task = classification(n_classes)
    values = logged(task, logits, torch.from_numpy(target), batch_size)

    scores = torch.cat([x.softmax(-1) for x in logits.split(batch_size)]).numpy().astype(np.float64)
    predicted, there = scores.argmax(1), np.unique(target)
    areas = [sk.roc_auc_score(target == c, scores[:, c]) for c in there if len(there) > 1]
    averages = [sk.average_precision_score(target == c, scores[:, c]) for c in there]
    macro: Any = {"average": "macro", "zero_division": 0}
    expected = {
        "accuracy": sk.accuracy_score(target, predicted),
        "precision": sk.precision_score(target, predicted, **macro),
        "recall": sk.recall_score(target, predicted, **macro, labels=np.union1d(target, predicted)),
        "f1": sk.f1_score(target, predicted, **macro),
        "average_precision": np.mean(averages),
    }
    if areas:
        expected["auroc"] = np.mean(areas)
    assert (not areas) == ("val/auroc" not in values) == ("auroc" in task.undefined(torch.from_numpy(target)))
    for name, value in expected.items():
        assert values[f"val/{name}"] == pytest.approx(value, abs=1e-5), name
    recalls = {name.rpartition("_")[2]: v for name, v in values.items() if "recall_of" in name}
    assert recalls == pytest.approx({f"c{c}": np.mean(predicted[target == c] == c) for c in there})
    for name in ("precision", "f1"):
        assert {key.rpartition("_")[2] for key in values if f"{name}_of" in key} == recalls.keys()


def test_sigmoids_that_round_above_one_stay_probabilities():
    """torchmetrics would take them for logits, and a softmax of them for the probabilities."""
    task = classification(3)
    task.loss = binary_cross_entropy
    logits = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([30.0, 1.0, 30.0])
    assert float(task.probabilities(logits).max()) <= 1


# directions


def test_every_metric_of_every_task_has_a_direction():
    names = {name for task in (Classification, Regression, LanguageModeling) for name in task.METRICS}
    assert names == DIRECTIONS.keys()


# accuracy of language models


@pytest.mark.parametrize("n_columns", [1, 5, 64, 65, 128, 300])
def test_argmax_by_blocks_is_torch_s(n_columns):
    """Also among equals, of which the first counts: bfloat16 has many, and a constant network nothing else."""
    logits = torch.randn(50, n_columns, generator=torch.Generator().manual_seed(n_columns))
    for values in (logits, logits.bfloat16(), logits.round(), torch.zeros_like(logits), logits.log()):  # log: with NaN
        assert torch.equal(argmax(values), values.argmax(-1))
