from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quartet.models.mlp import MLP, embedding_width
from quartet.models.tabular import MemberLinear, Periodic, PiecewiseLinear

B, CARDINALITIES = 64, [4, 100]
BASE = {"hidden": [16, 8], "activation": "relu", "normalization": "none", "dropout": 0.0, "max_embedding": 10}
NUMBERS = {"numeric_embedding": "none", "d_numeric": 6, "n_frequencies": 7, "frequency_scale": 0.1, "n_bins": 8}
EMBEDDINGS = ["none", "periodic", "piecewise_linear"]


def make(**changes) -> MLP:
    sizes = {"n_numeric": 5, "cardinalities": CARDINALITIES, "n_outputs": 3, **changes}
    sizes["quantiles"] = [torch.linspace(-2, 2, 65).tolist()] * sizes["n_numeric"]
    return MLP(**{**BASE, **NUMBERS, "initialization": "kaiming", "ensemble": 1, **sizes})


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
    kinds = [type(module) for module in make(normalization="batch", dropout=0.1).layers[0].children()]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(module) for module in make(normalization="none", dropout=0.0).layers[0].children()] == [
        nn.Linear,
        nn.ReLU,
    ]


# embeddings of numbers


@pytest.mark.parametrize("numeric_embedding", EMBEDDINGS)
@pytest.mark.parametrize("ensemble", [1, 4])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_every_embedding_and_ensemble_starts_well(
    numeric_embedding, ensemble, normalization, parameters_without_gradient
):
    network = make(
        numeric_embedding=numeric_embedding, ensemble=ensemble, normalization=normalization, hidden=[32], n_outputs=10
    )
    logits, target = network(*some_rows()), torch.randint(10, (B,))
    assert logits.shape == ((B, 10) if ensemble == 1 else (B, 4, 10))
    loss = F.cross_entropy(logits.flatten(0, -2), target.repeat_interleave(ensemble))
    assert abs(loss.item() - math.log(10)) < 0.1
    dead = parameters_without_gradient(network, loss)
    assert all(normalization == "batch" and name.endswith("0.bias") for name in dead)
    assert network.eval()(*some_rows()).shape == (B, 10)


def test_piecewise_linear_fills_the_bins_one_after_the_other():
    code = PiecewiseLinear([[0.0, 1.0, 3.0, 7.0]], n_bins=3)
    x = torch.tensor([[-0.5], [0.0], [0.5], [2.0], [7.0], [9.0]])
    expected = [[-0.5, 0, 0], [0, 0, 0], [0.5, 0, 0], [1, 0.5, 0], [1, 1, 1], [1, 1, 1.5]]
    assert code(x)[:, 0].tolist() == expected


def test_equal_quantiles_leave_fewer_bins():
    few = PiecewiseLinear([[0.0, 0.0, 0.0, 1.0, 1.0], [2.0] * 5], n_bins=4)(torch.tensor([[0.25, 2.0], [1.5, 9.0]]))
    assert few[:, 0].tolist() == [[0.25, 0, 0, 0], [1.5, 0, 0, 0]]
    assert not few[:, 1].any()


def test_bins_hold_equal_shares_of_the_training_rows():
    values = torch.randn(4096).exp()
    quantiles = torch.quantile(values, torch.linspace(0, 1, 65)).tolist()
    codes = PiecewiseLinear([quantiles], n_bins=16)(values[:, None])[:, 0]
    assert torch.histc((codes > 0).sum(1).float(), 16, 1, 16).sub(256).abs().max() < 20


def test_periodic_is_cosines_and_sines_of_the_column_s_own_frequencies():
    code, x = Periodic(2, 3, scale=0.5), torch.randn(4, 2)
    angles = 2 * math.pi * code.frequencies.view(2, 3)[1] * x[:, 1:]
    torch.testing.assert_close(code(x)[:, 1], torch.cat((angles.cos(), angles.sin()), 1))
    spread = Periodic(100, 100, scale=0.5).frequencies
    assert spread.abs().max() <= 1.5 and spread.std().item() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("numeric_embedding", EMBEDDINGS[1:])
def test_each_column_has_its_own_embedding(numeric_embedding):
    embed = make(numeric_embedding=numeric_embedding, cardinalities=[]).numeric
    x = torch.randn(1, 5)
    moved = x.clone()
    moved[0, 2] += 0.3
    changed = (embed(x) != embed(moved)).view(5, 6).any(1)
    assert changed.tolist() == [False, False, True, False, False]


def test_a_table_without_numbers_needs_no_embedding():
    assert make(n_numeric=0, numeric_embedding="piecewise_linear")(*some_rows(0)).shape == (B, 3)


# the ensemble


def test_members_differ_from_the_first_layer_on_and_share_their_weights():
    network = make(ensemble=4, cardinalities=[])
    first, second = (network.get_submodule(f"layers.{i}.0") for i in (0, 1))
    assert isinstance(first, MemberLinear) and isinstance(second, MemberLinear)
    assert set(first.scale_in.tolist()) == {-1.0, 1.0} and set(second.scale_in.tolist()) == {1.0}
    assert first.weight.shape == (16, 5) and second.weight.shape == (8, 16)
    outputs = network(*some_rows(cardinalities=[]))
    assert (outputs[:, 0] - outputs[:, 1]).abs().max() > 0


def test_a_member_is_a_plain_linear_layer_of_its_own():
    layer = MemberLinear(3, 2, 4, spread=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 4, 3)
    scale_in, scale_out, bias = (p.view(4, -1) for p in (layer.scale_in, layer.scale_out, layer.bias))
    for k in range(4):
        own = F.linear(x[:, k], scale_out[k][:, None] * layer.weight * scale_in[k], bias[k])
        torch.testing.assert_close(layer(x)[:, k], own)


def test_members_do_not_see_each_other():
    """The gradient of one member's output reaches no other member's own parameters."""
    network = make(ensemble=3, cardinalities=[])
    network(*some_rows(cardinalities=[]))[:, 1].sum().backward()
    first = network.get_submodule("layers.0.0")
    assert isinstance(first, MemberLinear) and first.scale_in.grad is not None
    assert first.scale_in.grad.view(3, -1).any(1).tolist() == [False, True, False]


def test_the_prediction_is_the_mean_of_the_members_probabilities():
    network, rows = make(ensemble=4), some_rows()
    nn.init.normal_(network.head.weight)
    members, prediction = network(*rows), network.eval()(*rows)
    torch.testing.assert_close(prediction.softmax(-1), members.softmax(-1).mean(1))
    torch.testing.assert_close(prediction.exp().sum(-1), torch.ones(B))


def test_the_prediction_of_a_number_is_the_members_mean():
    network, rows = make(ensemble=4, n_outputs=1), some_rows()
    torch.testing.assert_close(network(*rows).mean(1), network.eval()(*rows))


def test_batch_normalisation_goes_over_samples_and_members():
    network = make(ensemble=4, normalization="batch", hidden=[16])
    norm = network.get_submodule("layers.0.1")
    normalised = norm(torch.randn(B, 4, 16) * 3 + 1)
    torch.testing.assert_close(normalised.mean((0, 1)), torch.zeros(16), atol=1e-5, rtol=0)


def test_vectors_of_members_and_columns_do_not_decay():
    from quartet.optim import parameter_groups

    network = make(ensemble=4, numeric_embedding="periodic", normalization="batch")
    spared = {id(p) for p in parameter_groups(network, 0.1)[1]["params"]}
    named = dict(network.named_parameters())
    names = ("frequencies", "scale_in", "scale_out", "bias", "layers.0.1.weight", "layers.1.1.weight")
    assert all((id(p) in spared) == (name.endswith(names) or "embeddings" in name) for name, p in named.items())


@pytest.mark.parametrize("numeric_embedding", EMBEDDINGS)
def test_compiling_an_ensemble(assert_compiles, numeric_embedding):
    assert_compiles(make(ensemble=2, numeric_embedding=numeric_embedding, normalization="layer"), *some_rows())


def test_compiling_keeps_keys_and_outputs(assert_compiles):
    assert_compiles(make(normalization="layer"), *some_rows())


def test_conf_values_fit_the_constructor(conf_values):
    values = conf_values("mlp")
    assert MLP.problems(values) == []
    assert make(cardinalities=[4], **values)(*some_rows(cardinalities=[4])).shape == (B, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "step"}, "model.activation must be one of relu, .*, not 'step'"),
        ({"normalization": "group"}, "model.normalization must be one of none, batch, layer"),
        ({"initialization": "zeros"}, "model.initialization must be one of kaiming, xavier, normal"),
        ({"hidden": [16, 0]}, r"model.hidden must be a list, each item an integer of at least 1, not \[16, 0\]"),
        ({"max_embedding": 0}, "model.max_embedding must be an integer of at least 1, not 0"),
        ({"dropout": 2}, "model.dropout must be a probability: at least 0 and below 1, not 2"),
        ({"numeric_embedding": "plr"}, "model.numeric_embedding must be one of none, periodic, piecewise_linear"),
        (
            {"d_numeric": 0, "n_frequencies": 0},
            "model.d_numeric must be an integer of at least 1, not 0\nmodel.n_frequencies must be",
        ),
        ({"frequency_scale": 0}, "model.frequency_scale must be a number above 0, not 0"),
        ({"n_bins": 65}, "model.n_bins must be an integer from 1 to 64, not 65"),
        ({"ensemble": 0}, "model.ensemble must be an integer of at least 1, not 0"),
        ({"n_numeric": 0, "cardinalities": []}, "the table has no column besides the target"),
        ({"activation": "step", "hidden": [0]}, r"model.hidden must be .*\nmodel.activation"),
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
