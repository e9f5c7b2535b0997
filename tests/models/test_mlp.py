from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quartet.models.mlp import MLP, embedding_width

B, CARDINALITIES = 64, [4, 100]
BASE = {"hidden": [16, 8], "activation": "relu", "normalization": "none", "dropout": 0.0, "max_embedding": 10}


def make(**changes) -> MLP:
    sizes = {"n_numeric": 5, "cardinalities": CARDINALITIES, "n_outputs": 3}
    return MLP(**{**sizes, **BASE, "initialization": "kaiming", **changes})


def some_rows(n_numeric: int = 5, cardinalities: list[int] = CARDINALITIES) -> tuple[torch.Tensor, torch.Tensor]:
    categorical = [torch.randint(n, (B,)) for n in cardinalities]
    return torch.randn(B, n_numeric), torch.stack(categorical, 1) if categorical else torch.zeros(B, 0).long()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.parametrize("initialization", ["xavier", "kaiming", "normal"])
def test_start(activation, normalization, initialization, parameters_without_gradient):
    """Loss about ln(classes), logits of both signs, every parameter receives a gradient."""
    choices = {"activation": activation, "normalization": normalization, "initialization": initialization}
    network = make(hidden=[32, 32], n_outputs=10, **choices)
    logits, target = network(*some_rows()), torch.randint(10, (B,))
    loss = F.cross_entropy(logits, target)
    assert abs(loss.item() - math.log(10)) < 0.1 and logits.min() < 0 < logits.max()
    dead = parameters_without_gradient(network, loss)
    assert all(normalization == "batch" and name.endswith("0.bias") for name in dead)  # batch norm takes the mean away


@pytest.mark.parametrize(("n_numeric", "cardinalities"), [(5, []), (0, CARDINALITIES), (1, [2])])
def test_either_kind_of_column_may_be_absent(n_numeric, cardinalities):
    network = make(n_numeric=n_numeric, cardinalities=cardinalities)
    assert network(*some_rows(n_numeric, cardinalities)).shape == (B, 3)


def test_no_hidden_layer_is_a_linear_model():
    network = make(hidden=[], cardinalities=[])
    numeric, categorical = some_rows(cardinalities=[])
    torch.testing.assert_close(network(numeric, categorical), network.head(numeric))


def test_a_category_matters_and_an_unseen_one_adds_nothing():
    network, (numeric, categorical) = make(hidden=[]), some_rows()
    unseen = torch.zeros_like(categorical)
    assert not torch.equal(network(numeric, categorical.clamp(min=1)), network(numeric, unseen))
    torch.testing.assert_close(network(numeric, unseen), F.linear(numeric, network.head.weight[:, :5]))


@pytest.mark.parametrize(("cardinality", "width"), [(1, 2), (2, 2), (10, 6), (100, 10), (100_000, 10)])
def test_embedding_width_follows_the_rule_up_to_its_limit(cardinality, width):
    assert embedding_width(cardinality, max_width=10) == width


def test_regression_starts_near_the_mean():
    assert make(n_outputs=1)(*some_rows()).abs().max() < 0.5  # in standard deviations of the target


def test_dropout_acts_in_training_only():
    network, rows = make(dropout=0.5), some_rows()
    assert not torch.equal(network(*rows), network(*rows))
    network.eval()
    assert torch.equal(network(*rows), network(*rows))


def test_initialisations_differ_as_named():
    wide = {"hidden": [400], "n_numeric": 400, "cardinalities": []}
    std = {name: make(initialization=name, **wide).get_parameter("layers.0.0.weight").std().item() for name in INITIAL}
    assert std == pytest.approx(INITIAL, rel=0.02)  # 160,000 draws: the error is about 0.002


INITIAL = {"xavier": (1 / 400) ** 0.5, "kaiming": (2 / 400) ** 0.5, "normal": 0.05}


def test_layers_stand_in_the_order_linear_norm_activation_dropout():
    kinds = [type(module) for module in make(normalization="batch").layers[0].children()]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]


def test_compiling_keeps_keys_and_outputs(assert_compiles):
    assert_compiles(make(normalization="layer"), *some_rows())


def test_conf_values_fit_the_constructor(conf_values):
    values = conf_values("mlp")
    assert MLP.problems(values) == []
    assert MLP(n_numeric=5, cardinalities=[4], n_outputs=3, **values)(*some_rows(cardinalities=[4])).shape == (B, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "step"}, "model.activation must be one of relu, .*, not 'step'"),
        ({"normalization": "group"}, "model.normalization must be one of none, batch, layer"),
        ({"initialization": "zeros"}, "model.initialization must be one of xavier, kaiming, normal"),
        ({"hidden": [16, 0]}, r"model.hidden=\[16, 0\] must hold widths of 1 or more"),
        ({"max_embedding": 0}, "model.max_embedding=0 must be 1 or more"),
        ({"dropout": 2}, "model.dropout=2 must be a probability"),
        ({"n_numeric": 0, "cardinalities": []}, "the table has no column besides the target"),
        ({"activation": "step", "hidden": [0]}, "model.activation.*; model.hidden"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "settings", [{}, {"activation": 3, "hidden": "wide", "dropout": None}, {"hidden": ["a", None]}]
)
def test_missing_keys_and_wrong_types_are_left_to_others(settings):
    assert MLP.problems(settings) == []
