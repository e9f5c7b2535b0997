"""The numbers behind the figures, against scikit-learn; and figures of awkward data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score
from sklearn.metrics import confusion_matrix as reference_confusion

from quartet.callbacks import figures


@pytest.fixture
def scores():
    """200 scores with ties and their labels."""
    random = np.random.default_rng(0)
    positive = random.random(200) < 0.3
    return np.round(random.normal(size=200) + positive, 1), positive


def test_areas_equal_scikit_learn(scores):
    score, positive = scores
    assert auc(*figures.roc(score, positive)) == pytest.approx(roc_auc_score(positive, score))
    recall, precision = figures.precision_recall(score, positive)
    area = (np.diff(recall) * precision[1:]).sum()
    assert area == pytest.approx(average_precision_score(positive, score))


def test_confusion_equals_scikit_learn():
    target, predicted = np.random.default_rng(0).integers(0, 4, (2, 50))
    assert (figures.confusion_matrix(target, predicted, 4) == reference_confusion(target, predicted)).all()


def test_the_worst_mistake_is_the_one_whose_truth_was_least_likely():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.95, 0.05]])
    target = np.array([1, 1, 1, 0])  # the last two are right
    assert figures.worst_mistakes(probabilities, target, 5).tolist() == [0, 1]
    assert figures.worst_mistakes(probabilities, target, 1).tolist() == [0]


def test_thinned_curves_keep_their_ends_and_order():
    x = np.sort(np.random.default_rng(0).random(20_000))
    x[0], x[-1] = 0.0, 1.0
    thin, _ = figures._thin_curve(x, x)
    assert len(thin) <= 1_000 and thin[0] == 0 and thin[-1] == 1 and (np.diff(thin) > 0).all()


@pytest.mark.parametrize("n_classes", [2, 3, 60])
def test_any_number_of_classes_is_drawn_also_where_some_are_absent(n_classes):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(n_classes), 30)
    target = random.integers(0, max(1, n_classes - 1), 30)
    names = tuple(f"a rather long name of class {i}" for i in range(n_classes))
    for figure in (
        figures.confusion_figure(target, probabilities.argmax(1), names, "title"),
        figures.curves_figure(probabilities, target, names, "title"),
    ):
        assert figures.render(figure).std() > 5


def test_no_mistakes_and_a_constant_target_are_drawn():
    assert figures.render(figures.pictures_figure(np.zeros((0, 1, 1, 1)), [], "no mistakes")).shape[0] < 60
    constant = np.ones(5)
    assert figures.render(figures.regression_figure(constant, constant, "title")).std() > 5


def test_pictures_in_colour_and_in_grey():
    for channels in (1, 3):
        pictures = np.random.default_rng(0).integers(0, 255, (6, 4, 4, channels)).astype(np.uint8)
        assert figures.render(figures.pictures_figure(pictures, ["a\nb"] * 6, "title")).std() > 5
