"""Sampling: temperature, top-k, top-p, and the cache that changes nothing."""

import pytest
import torch

from quartet.models.rnn import RNN
from quartet.models.transformer import Transformer
from quartet.sampling import choose, filter_logits, generate

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
FREE = {"temperature": 1.0, "top_k": None, "top_p": None}


def transformer():
    return Transformer(
        vocab_size=17, context_length=8, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32, dropout=0.0,
        positions="rotary", norm="rmsnorm", norm_position="pre", qk_norm=True, feed_forward="relu2", bias=False,
        tie_embeddings=False, pooling="mean", token_dropout=0.0,
    )  # fmt: skip


def rnn():
    return RNN(
        vocab_size=17, context_length=8, cell="lstm", n_layers=2, d_embedding=8, d_hidden=16, dropout=0.0, token_dropout=0.0,
        tie_embeddings=False, bidirectional=False, pooling="mean",
    )  # fmt: skip


def tokens_of(network, *, seed=0, cache=True, temperature=1.0, max_tokens=40):
    generator = torch.Generator().manual_seed(seed)
    settings = {"temperature": temperature, "top_k": None, "top_p": None, "generator": generator, "cache": cache}
    return list(generate(network, [1, 2, 3], max_tokens=max_tokens, **settings))


def test_temperature_0_takes_the_likeliest_and_ignores_the_seed():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        state = generator.get_state()
        assert choose(LOGITS, temperature=0, top_k=None, top_p=None, generator=generator) == 0
        assert torch.equal(state, generator.get_state())


def test_top_k_keeps_k_tokens_and_top_p_the_nucleus():
    assert filter_logits(LOGITS, **{**FREE, "top_k": 2}).isfinite().tolist() == [True, True, False, False]
    assert filter_logits(LOGITS, **{**FREE, "top_p": 0.7}).isfinite().tolist() == [True, True, False, False]
    assert filter_logits(LOGITS, **{**FREE, "top_p": 0.8}).isfinite().tolist() == [True, True, True, False]
    assert filter_logits(LOGITS, **{**FREE, "top_p": 1e-9}).isfinite().sum() == 1
    assert filter_logits(LOGITS, **{**FREE, "top_k": 99}).isfinite().all()


def test_temperature_sharpens():
    cold = filter_logits(LOGITS, **{**FREE, "temperature": 0.5}).softmax(-1)
    assert cold[0] > 0.5 > cold[1] and cold.sum() == pytest.approx(1)


@pytest.mark.parametrize("make", [transformer, rnn])
def test_cached_and_uncached_generation_agree_token_for_token(make):
    """Also past the context length (8): 40 tokens cut the window several times. float64 leaves no room for rounding."""
    torch.manual_seed(0)
    network = make().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)  # far from uniform, so that a wrong state would show
    for seed in range(3):
        assert tokens_of(network, seed=seed, cache=True) == tokens_of(network, seed=seed, cache=False)


def test_the_seed_decides():
    torch.manual_seed(0)
    network = transformer().eval()
    assert tokens_of(network, seed=1) == tokens_of(network, seed=1) != tokens_of(network, seed=2)


def test_generation_stops_at_the_stop_token_and_avoids_forbidden_ones():
    torch.manual_seed(0)
    network = transformer().eval()
    free = tokens_of(network, seed=0)
    settings = {**FREE, "generator": torch.Generator().manual_seed(0), "max_tokens": 40}
    assert list(generate(network, [1, 2, 3], stop_id=free[5], **settings)) == free[: free.index(free[5])]
    settings["generator"] = torch.Generator().manual_seed(0)
    assert free[0] not in list(generate(network, [1, 2, 3], forbidden_ids=(free[0],), **settings))
