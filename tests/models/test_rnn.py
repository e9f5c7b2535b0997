from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from quartet.models.dropout import LockedDropout, TokenDropout
from quartet.models.rnn import RNN, turned_positions

V, T, PAD = 50, 12, 0
BASE = {"n_layers": 2, "d_embedding": 10, "d_hidden": 16, "dropout": 0.0, "token_dropout": 0.0, "tie_embeddings": True}
every_cell = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
every_pooling = pytest.mark.parametrize("pooling", ["mean", "max", "last"])
both_directions = pytest.mark.parametrize("bidirectional", [False, True])


def make(**changes) -> RNN:
    values = {"cell": "lstm", "bidirectional": False, "pooling": "mean", **BASE, **changes}
    return RNN(vocab_size=V, context_length=T, **values).double().eval()


def classifier(**changes) -> RNN:
    return make(**{"n_classes": 3, "pad_id": PAD, **changes})


def some_tokens(batch: int = 3, length: int = T) -> torch.Tensor:
    return torch.randint(1, V, (batch, length))


@every_cell
def test_later_tokens_never_change_earlier_logits(cell):
    network, tokens = make(cell=cell), some_tokens()
    logits = network(tokens)
    for t in range(T - 1):
        changed = tokens.clone()
        changed[:, t + 1] = changed[:, t + 1] % (V - 1) + 1  # another token for certain
        after = network(changed)
        torch.testing.assert_close(after[:, : t + 1], logits[:, : t + 1], rtol=0, atol=1e-12)
        assert (after[:, t + 1] - logits[:, t + 1]).abs().max() > 1e-9


@every_cell
def test_order_of_earlier_tokens_matters(cell):
    network, tokens = make(cell=cell), torch.arange(1, T + 1).unsqueeze(0)
    swapped = tokens[:, [1, 0, *range(2, T)]]
    assert (network(tokens)[:, 2] - network(swapped)[:, 2]).abs().max() > 1e-9


@every_cell
@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("d_embedding", [None, 10])
def test_loss_at_initialisation_is_that_of_a_uniform_guess(cell, tie_embeddings, d_embedding):
    network = make(cell=cell, tie_embeddings=tie_embeddings, d_embedding=d_embedding)
    logits = network(some_tokens(16))
    assert abs(F.cross_entropy(logits.flatten(0, 1), torch.randint(V, (16 * T,))).item() - math.log(V)) < 0.4
    assert logits.min() < 0 < logits.max()


@every_cell
@every_pooling
@both_directions
def test_classifier_at_initialisation(cell, pooling, bidirectional):
    logits = classifier(cell=cell, pooling=pooling, bidirectional=bidirectional)(some_tokens(16))
    assert logits.shape == (16, 3) and logits.min() < 0 < logits.max()
    assert abs(F.cross_entropy(logits, torch.randint(3, (16,))).item() - math.log(3)) < 0.1


@every_cell
def test_every_parameter_receives_a_gradient(cell, parameters_without_gradient):
    for network in (make(cell=cell), make(cell=cell, tie_embeddings=False), classifier(cell=cell, bidirectional=True)):
        assert parameters_without_gradient(network.train(), network(some_tokens()).square().mean()) == []


@every_cell
def test_advance_in_chunks_equals_forward(cell):
    network, tokens = make(cell=cell), some_tokens()
    state, pieces = None, []
    for chunk in tokens.split([1, 4, 1, 6], dim=1):
        logits, state = network.advance(chunk, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), network(tokens), rtol=0, atol=1e-9)


@every_cell
@every_pooling
@both_directions
def test_padding_does_not_change_a_classifier(cell, pooling, bidirectional):
    network = classifier(cell=cell, pooling=pooling, bidirectional=bidirectional)
    texts = [some_tokens(1, length) for length in (1, 5, 9)]
    alone = torch.cat([network(text) for text in texts])
    for width in (9, T):
        together = network(torch.cat([F.pad(text, (0, width - text.shape[1]), value=PAD) for text in texts]))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_backward_direction_reads_from_the_end_of_each_text():
    network = classifier(bidirectional=True)
    layer, x = network.get_submodule("layers.0"), torch.randn(1, 6, 10).double()
    by_hand = network.get_submodule("layers.0.back")(x.flip(1))[0].flip(1)  # the text alone
    y, _ = layer(F.pad(x, (0, 0, 0, 4)), None, turned_positions(torch.tensor([6]), 10))
    torch.testing.assert_close(y[:, :6, 16:], by_hand)


def test_turning_twice_is_identity():
    turned = turned_positions(torch.tensor([1, 3, 5]), 5)
    assert turned.tolist() == [[0, 1, 2, 3, 4], [2, 1, 0, 3, 4], [4, 3, 2, 1, 0]]
    assert torch.equal(turned.gather(1, turned), torch.arange(5).expand(3, 5))


@every_pooling
def test_an_empty_text_has_finite_logits(pooling):
    assert classifier(pooling=pooling, bidirectional=True)(torch.full((2, 5), PAD)).isfinite().all()


def test_locked_dropout_keeps_one_mask_per_sequence():
    dropout, x = LockedDropout(0.5), torch.ones(8, 6, 32)
    y = dropout(x)
    assert torch.equal(y, y[:, :1].expand_as(y)) and set(y.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(y[0], y[1])  # 2^-32: masks differ between sequences
    assert torch.equal(dropout.eval()(x), x)


def test_token_dropout_takes_whole_positions_and_scales_nothing():
    dropout, x = TokenDropout(0.5), torch.ones(8, 6, 32)
    y = dropout(x)
    assert torch.equal(y, y[..., :1].expand_as(y)) and set(y.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(dropout.eval()(x), x)


def test_forget_gate_starts_at_one_and_recurrent_weights_orthogonal():
    cell = make(d_hidden=16).get_submodule("layers.0.ahead")
    bias = cell.get_parameter("bias_ih_l0") + cell.get_parameter("bias_hh_l0")
    assert torch.equal(bias, torch.cat((torch.zeros(16), torch.ones(16), torch.zeros(32))).double())
    for gate in cell.get_parameter("weight_hh_l0").split(16):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16).double(), rtol=0, atol=1e-5)


def test_tied_embeddings_are_one_parameter_behind_a_projection():
    network = make(tie_embeddings=True, d_embedding=10)
    project, last = network.head.children()
    assert last.weight is network.embedding.weight and project.weight.shape == (10, 16)


@pytest.mark.parametrize("network", [make, lambda: classifier(bidirectional=True)])
def test_compiling_keeps_keys_and_outputs(network, assert_compiles):
    assert_compiles(network(), some_tokens())


def test_conf_values_fit_the_constructor(conf_values):
    values = conf_values("rnn")
    assert RNN.problems(values) == []
    assert RNN(vocab_size=V, context_length=T, **values)(some_tokens()).shape == (3, T, V)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "mgu"}, "model.cell must be one of lstm, gru, rnn_tanh, rnn_relu, not 'mgu'"),
        ({"pooling": "first"}, "model.pooling must be one of"),
        ({"n_layers": 0}, "model.n_layers must be an integer of at least 1, not 0"),
        ({"d_embedding": 0}, "model.d_embedding must be an integer of at least 1 or null, not 0"),
        ({"dropout": -0.1}, "model.dropout must be a probability: at least 0 and below 1, not -0.1"),
        ({"bidirectional": True}, "model.bidirectional=true reads what it must predict"),
        ({"n_classes": 3}, "a classifier needs pad_id"),
        ({"cell": "mgu", "d_hidden": 0}, r"model.cell must be .*\nmodel.d_hidden"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("settings", [{}, {"cell": 3, "d_hidden": "wide", "dropout": None, "n_layers": True}])
def test_missing_keys_and_wrong_types_are_left_to_others(settings):
    assert RNN.problems(settings) == []
