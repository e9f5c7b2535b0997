"""The numbers behind the figures, against scikit-learn; and figures of awkward data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from quartet.callbacks import figures


def test_the_legends_have_scikit_learn_s_areas():
    """200 scores with ties; of two classes the second one has a curve."""
    random = np.random.default_rng(0)
    positive = random.random(200) < 0.3
    score = np.round(1 / (1 + np.exp(-random.normal(size=200) - positive)), 1)
    drawn = figures.curves_figure(np.stack([1 - score, score], 1), positive.astype(int), ("no", "yes"), "title")
    legends = [axes.get_legend() for axes in drawn.axes]
    labels = [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]
    areas = roc_auc_score(positive, score), average_precision_score(positive, score)
    assert labels == [f"yes  AUC {areas[0]:.3f}", f"yes  AP {areas[1]:.3f}"]


def test_the_cells_of_the_confusion_matrix_are_scikit_learn_s():
    target, predicted = np.random.default_rng(0).integers(0, 4, (2, 50))
    drawn = figures.confusion_figure(target, predicted, tuple("abcd"), "title")
    expected = confusion_matrix(target, predicted)
    cells = {tuple(map(int, text.get_position())): int(text.get_text()) for text in drawn.axes[0].texts}
    assert cells == {(column, row): expected[row, column] for row, column in np.argwhere(expected)}


def test_the_worst_mistake_is_the_one_whose_truth_was_least_likely():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.95, 0.05]])
    target = np.array([1, 1, 1, 0])  # the last two are right
    assert figures.worst_mistakes(probabilities, target, 5).tolist() == [0, 1]
    assert figures.worst_mistakes(probabilities, target, 1).tolist() == [0]


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
    assert figures.render(figures.images_figure(np.zeros((0, 1, 1, 1)), [], "no mistakes")).shape[0] < 60
    constant = np.ones(5)
    assert figures.render(figures.regression_figure(constant, constant, "title")).std() > 5


def test_pictures_in_colour_and_in_grey():
    for channels in (1, 3):
        pictures = np.random.default_rng(0).integers(0, 255, (6, 4, 4, channels)).astype(np.uint8)
        assert figures.render(figures.images_figure(pictures, ["a\nb"] * 6, "title")).std() > 5
