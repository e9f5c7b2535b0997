from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from quartet.models.transformer import Transformer

SIZES = {
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": None,
    "d_model": 32,
    "d_ff": 48,
    "dropout": 0.0,
    "token_dropout": 0.0,
    "pooling": "mean",
}
STYLES = {
    "modern": {"positions": "rotary", "norm": "rmsnorm", "norm_position": "pre", "qk_norm": True},
    "gpt2": {"positions": "learned", "norm": "layernorm", "norm_position": "pre", "qk_norm": False},
    "classic": {"positions": "sinusoidal", "norm": "layernorm", "norm_position": "post", "qk_norm": False},
}
DETAILS = {
    "modern": {"feed_forward": "relu2", "bias": False, "tie_embeddings": False},
    "gpt2": {"feed_forward": "gelu", "bias": True, "tie_embeddings": True},
    "classic": {"feed_forward": "relu", "bias": True, "tie_embeddings": True},
}
V, T, PAD = 50, 12, 0
every_style = pytest.mark.parametrize("style", list(STYLES))


def make(style: str = "modern", **changes) -> Transformer:
    values = {"vocab_size": V, "context_length": T, **SIZES, **STYLES[style], **DETAILS[style], **changes}
    return Transformer(**values).double().eval()


def classifier(style: str = "modern", **changes) -> Transformer:
    return make(style, n_classes=3, pad_id=PAD, **changes)


def some_tokens(batch: int = 3, length: int = T) -> torch.Tensor:
    return torch.randint(1, V, (batch, length))


@every_style
def test_later_tokens_never_change_earlier_logits(style):
    network, tokens = make(style), some_tokens()
    logits = network(tokens)
    for t in range(T - 1):
        changed = tokens.clone()
        changed[:, t + 1] = changed[:, t + 1] % (V - 1) + 1  # another token for certain
        after = network(changed)
        torch.testing.assert_close(after[:, : t + 1], logits[:, : t + 1], rtol=0, atol=1e-12)
        assert (after[:, t + 1] - logits[:, t + 1]).abs().max() > 1e-9


@every_style
def test_order_of_earlier_tokens_matters(style):
    network, tokens = make(style), torch.arange(1, T + 1).unsqueeze(0)
    swapped = tokens[:, [1, 0, *range(2, T)]]
    assert (network(tokens)[:, -1] - network(swapped)[:, -1]).abs().max() > 1e-9


@every_style
def test_loss_at_initialisation_is_that_of_a_uniform_guess(style):
    logits = make(style)(some_tokens(16))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(V, (16 * T,)))
    assert abs(loss.item() - math.log(V)) < 0.15
    assert logits.min() < 0 < logits.max()


@every_style
def test_classifier_at_initialisation(style):
    logits = classifier(style)(some_tokens(16))
    assert logits.shape == (16, 3) and logits.min() < 0 < logits.max()
    assert abs(F.cross_entropy(logits, torch.randint(3, (16,))).item() - math.log(3)) < 0.15


@every_style
@pytest.mark.parametrize("build", [make, classifier])
def test_every_parameter_receives_a_gradient(style, build, parameters_without_gradient):
    network = build(style, n_kv_heads=2).train()
    dead = parameters_without_gradient(network, network(some_tokens()).square().mean())
    assert all(name.endswith("key.bias") for name in dead)  # softmax ignores what all keys share


@every_style
@pytest.mark.parametrize("feed_forward", ["relu2", "relu", "gelu", "swiglu"])
@pytest.mark.parametrize("n_kv_heads", [None, 2, 1])
def test_advance_in_chunks_equals_forward(style, feed_forward, n_kv_heads):
    network, tokens = make(style, feed_forward=feed_forward, n_kv_heads=n_kv_heads), some_tokens()
    state, pieces = None, []
    for chunk in tokens.split([1, 4, 1, 6], dim=1):
        logits, state = network.advance(chunk, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), network(tokens), rtol=0, atol=1e-9)


def test_grouped_queries_shrink_the_cache():
    _, state = make(n_kv_heads=1).advance(some_tokens(), None)
    assert state.blocks[0][0].shape == (3, 1, T, 8)


def test_the_cache_is_as_large_as_the_context_from_the_start_and_written_in_place():
    network = make(n_kv_heads=2).to(torch.bfloat16)
    _, state = network.advance(some_tokens(length=2), None)
    buffers = [x for block in state.blocks for x in block]
    assert all(x.shape == (3, 2, T, 8) and x.dtype == torch.bfloat16 for x in buffers)
    for n in (1, 4, 1):
        before = state
        _, state = network.advance(some_tokens(length=n), state)
        assert state.length == before.length + n
    assert all(x is y for x, y in zip([x for block in state.blocks for x in block], buffers, strict=True))


@every_style
@pytest.mark.parametrize("n_new", [1, 3])
def test_what_lies_behind_the_read_positions_does_not_matter(style, n_new):
    network, tokens = make(style, n_kv_heads=2), some_tokens(length=5 + n_new)
    _, state = network.advance(tokens[:, :5], None)
    for keys, values in state.blocks:
        keys[:, :, 5:], values[:, :, 5:] = math.nan, math.nan
    logits, _ = network.advance(tokens[:, 5:], state)
    torch.testing.assert_close(logits, network(tokens)[:, 5:], rtol=0, atol=1e-9)


@every_style
def test_a_full_context_is_an_error(style):
    network = make(style)
    _, state = network.advance(some_tokens(length=T - 1), None)
    with pytest.raises(ValueError, match=rf"{T + 1} tokens .* {T}"):
        network.advance(some_tokens(length=2), state)
    assert network.advance(some_tokens(length=1), state)[1].length == T


@every_style
@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_padding_does_not_change_a_classifier(style, pooling):
    network, tokens = classifier(style, pooling=pooling), some_tokens(length=7)
    padded = F.pad(tokens, (0, T - 7), value=PAD)
    torch.testing.assert_close(network(padded), network(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_an_empty_text_has_finite_logits_and_gradients(pooling):
    network = classifier(pooling=pooling)
    logits = network(torch.full((2, 5), PAD))
    logits.sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert logits.isfinite().all() and all(g.isfinite().all() for g in gradients)


def test_a_classifier_reads_in_both_directions():
    network, tokens = classifier(pooling="first"), some_tokens()
    changed = tokens.clone()
    changed[:, -1] = changed[:, -1] % (V - 1) + 1
    assert (network(changed) - network(tokens)).abs().max() > 1e-9


@every_style
@pytest.mark.parametrize("kind", ["dropout", "token_dropout"])
def test_dropout_acts_in_training_only(style, kind):
    network, tokens = make(style, **{kind: 0.5}), some_tokens()
    assert torch.equal(network(tokens), network(tokens))
    network.train()
    assert not torch.equal(network(tokens), network(tokens))


def test_fixed_positions_do_not_drown_the_tokens():
    network = make("classic", d_model=128)
    tokens = network.embedding.weight.std().item() * network.embedding_scale
    assert 0.2 < tokens / network.get_submodule("positions")(torch.arange(T)).std().item() < 1  # unscaled: 0.03


def test_tied_embeddings_are_one_parameter():
    network = make("gpt2")
    assert network.head.weight is network.embedding.weight


@every_style
def test_compiling_keeps_keys_and_outputs(style, assert_compiles):
    assert_compiles(make(style), some_tokens())


@pytest.mark.parametrize("name", ["transformer", "transformer_gpt2", "transformer_classic"])
def test_conf_values_fit_the_constructor(name, conf_values):
    values = conf_values(name)
    assert Transformer.problems(values) == []
    assert Transformer(vocab_size=V, context_length=T, **values)(some_tokens()).shape == (3, T, V)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "relative"}, "model.positions must be one of rotary, learned, sinusoidal, not 'relative'"),
        ({"norm": "batch"}, "model.norm must be one of"),
        ({"norm_position": "middle"}, "model.norm_position must be one of"),
        ({"feed_forward": "tanh"}, "model.feed_forward must be one of"),
        ({"pooling": "last"}, "model.pooling must be one of"),
        ({"n_heads": 5}, r"model.n_heads=5 does not divide model.d_model=32; use one of \[1, 2, 4, 8, 16\]"),
        ({"d_model": 20}, "rotary positions need an even head size, not 20/4"),
        ({"n_kv_heads": 3}, "model.n_kv_heads=3 does not divide model.n_heads=4"),
        ({"positions": "sinusoidal", "n_heads": 1, "d_model": 33}, "sinusoidal positions need an even width"),
        ({"n_heads": 0}, "model.n_heads must be an integer of at least 1, not 0"),
        ({"dropout": 1.0}, "model.dropout must be a probability: at least 0 and below 1, not 1.0"),
        ({"n_classes": 3}, "a classifier needs pad_id"),
        ({"n_heads": 5, "norm": "batch"}, r"model.norm must be .*\nmodel.n_heads"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("settings", [{}, {"n_heads": "four", "d_model": None, "positions": 3, "dropout": "0.1"}])
def test_missing_keys_and_wrong_types_are_left_to_others(settings):
    assert Transformer.problems(settings) == []
