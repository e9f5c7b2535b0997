"""Sampling: temperature, top-k, top-p, and the cache that changes nothing."""

import pytest
import torch

from quartet.models.rnn import RNN
from quartet.models.transformer import Transformer
from quartet.sampling import (
    Continuation,
    Token,
    choose,
    filter_logits,
    generate,
    generate_batch,
    log_probabilities,
    penalize,
)  # fmt: skip

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
FREE = {"temperature": 1.0, "top_k": None, "top_p": None}


def transformer(**changes):
    sizes = {"vocab_size": 17, "context_length": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 16}
    style = {"positions": "rotary", "norm": "rmsnorm", "norm_position": "pre", "qk_norm": True, "feed_forward": "relu2"}
    rest = {"d_ff": 32, "bias": False, "tie_embeddings": False, "pooling": "mean", "dropout": 0.0, "token_dropout": 0.0}
    return Transformer(**{**sizes, **style, **rest, **changes})


def classic():
    return transformer(positions="sinusoidal", norm="layernorm", norm_position="post", qk_norm=False, n_kv_heads=None)


def gpt2():
    return transformer(positions="learned", norm="layernorm", feed_forward="gelu", bias=True, tie_embeddings=True)


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
        rows = torch.stack((LOGITS, LOGITS.flip(0)))
        found = choose(rows, temperature=0, top_k=None, top_p=None, generators=[generator, None])
        assert found.tolist() == [0, 3]
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


def far_from_uniform(network):
    """So that a wrong state would show; in float64, which leaves no room for rounding."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)
    return network.double().eval()


@pytest.mark.parametrize("make", [transformer, classic, gpt2, rnn])
def test_cached_and_uncached_generation_agree_token_for_token(make):
    """Also past the context length (8): 40 tokens cut the window several times."""
    torch.manual_seed(0)
    network = far_from_uniform(make())
    for seed in range(3):
        assert tokens_of(network, seed=seed, cache=True) == tokens_of(network, seed=seed, cache=False)


@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_the_shortest_contexts(context_length):
    torch.manual_seed(0)
    network = far_from_uniform(transformer(context_length=context_length))
    tokens = tokens_of(network, max_tokens=12)
    assert len(tokens) == 12 and tokens == tokens_of(network, max_tokens=12, cache=False)


def test_a_token_is_read_once_until_the_window_is_cut(monkeypatch):
    """The prompt of 3, one at a time up to the context of 8, then its newer half and so on."""
    network, original, read = transformer().eval(), Transformer.advance, []

    def advance(self, tokens, state):
        read.append(tokens.shape[1])
        return original(self, tokens, state)

    monkeypatch.setattr(Transformer, "advance", advance)
    tokens_of(network, max_tokens=14)
    assert read == [3, 1, 1, 1, 1, 1, 4, 1, 1, 1, 1, 4, 1, 1]


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


# batches


def rows_of(network, seeds, *, prompt=(1, 2, 3), max_tokens=40, **settings):
    """The tokens of each row of a batch."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = list(
        generate_batch(network, list(prompt), generators=generators, max_tokens=max_tokens, **{**FREE, **settings})
    )
    return [[token for token in row if token is not None] for row in zip(*steps, strict=True)]


@pytest.mark.parametrize("make", [transformer, rnn])
@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.8}, {"repetition_penalty": 1.5}, {"cache": False}]
)
def test_a_row_of_a_batch_is_what_it_is_alone(make, settings):
    """Token for token, past the context length and whichever rows have ended before; float64 leaves no room for rounding."""
    torch.manual_seed(0)
    network = make().double().eval()
    for stop_id in (None, 4):
        together = rows_of(network, range(6), stop_id=stop_id, **settings)
        alone = [rows_of(network, [seed], stop_id=stop_id, **settings)[0] for seed in range(6)]
        for ours, expected in zip(together, alone, strict=True):
            assert [token.id for token in ours] == [token.id for token in expected]
            assert [token.logprob for token in ours] == pytest.approx([token.logprob for token in expected], abs=1e-6)
    assert len({len(row) for row in together}) > 1, "rows end at different times"


def test_a_batch_ends_when_its_last_row_has():
    torch.manual_seed(0)
    rows = rows_of(rnn().eval(), range(4), stop_id=4, max_tokens=1000)
    steps = list(
        generate_batch(
            rnn().eval(),
            [1],
            generators=[None],
            max_tokens=9,
            stop_id=4,
            forbidden_ids=tuple({*range(17)} - {4}),
            **FREE,
        )
    )
    assert max(map(len, rows)) < 1000 and steps == [[None]]


# repetition penalty


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([2.0, -2.0, 3.0, 0.0, -torch.inf])
    rows, seen = torch.stack((logits, logits)), torch.tensor([[0, 1, 1, 3, 4], [2, 2, 2, 2, 2]])
    expected = [[1.0, -4.0, 3.0, 0.0, -torch.inf], [2.0, -2.0, 1.5, 0.0, -torch.inf]]
    assert penalize(rows, seen, 2.0).tolist() == expected
    assert torch.equal(penalize(rows, seen, 1.0), rows)


def test_a_large_penalty_repeats_nothing_that_the_window_holds():
    torch.manual_seed(0)
    network = transformer().eval()
    for seed in range(5):
        (tokens,) = rows_of(network, [seed], max_tokens=5, temperature=0.0, prompt=[seed], repetition_penalty=1e6)
        ids = [seed, *(token.id for token in tokens)]
        assert len(set(ids)) == len(ids) == 6
        (free,) = rows_of(network, [seed], max_tokens=30, temperature=0.0, prompt=[seed])
        assert len({token.id for token in free}) < 17, "it repeats itself without"


# log-probabilities


@pytest.mark.parametrize("make", [transformer, rnn])
def test_log_probabilities_are_the_network_s_own(make):
    """Whatever was filtered, sharpened, penalised or forbidden."""
    torch.manual_seed(0)
    network = make().double().eval()
    settings = {"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.3, "forbidden_ids": (5, 6), "first_ids": (7, 8)}
    (tokens,) = rows_of(network, [0], max_tokens=5, **settings)
    ids = [1, 2, 3, *(token.id for token in tokens)]
    expected = network(torch.tensor([ids])).log_softmax(-1)[0, range(2, 7), ids[3:]]
    assert [token.logprob for token in tokens] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("n", [1, 5, 8, 9, 30])
def test_a_text_is_scored_as_it_is_generated(n):
    """The windows are the same ones, past the context length (8) too."""
    torch.manual_seed(0)
    network = transformer().double().eval()
    (tokens,) = rows_of(network, [3], prompt=[1], max_tokens=n)
    ids = [1, *(token.id for token in tokens)]
    found = torch.cat(list(log_probabilities(network, ids, context_length=8, carry_state=False)))
    assert found.tolist() == pytest.approx([token.logprob for token in tokens], abs=1e-6)


@pytest.mark.parametrize("n", [2, 8, 9, 30])
def test_a_carried_state_scores_a_text_as_one_window(n):
    torch.manual_seed(0)
    network = rnn().double().eval()
    ids = torch.randint(17, (n,)).tolist()
    found = torch.cat(list(log_probabilities(network, ids, context_length=8, carry_state=True)))
    whole = network(torch.tensor([ids[:-1]])).log_softmax(-1)[0, range(n - 1), ids[1:]]
    assert torch.allclose(found, whole)


# stop strings


def written(text: str, stop, sizes, seed: int = 0) -> Continuation:
    """A text that arrives in tokens of these numbers of bytes, drawn anew for each."""
    random, data, row = torch.Generator().manual_seed(seed), text.encode(), Continuation(stop)
    while data and row.stop_reason is None:
        size = sizes[int(torch.randint(len(sizes), (1,), generator=random))]
        before = row.text
        row.append(Token(len(row.tokens), -1.0), data[:size])
        data = data[size:]
        assert row.text.startswith(before), "what was shown stays"
    row.end("length")
    return row


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sizes", [[1], [1, 2, 3], [7, 20], [1000]])
@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (["\n\n"], "def f():\n  é中"),
        (["\n\n", "中"], "def f():\n  é"),
        (["def f():\n  é中\n\nabcx"], None),
        (["abcd", "bc"], "def f():\n  é中\n\na"),
        (["x", "zz"], None),
        (["def", "d"], ""),
        (["ababac"], "def f():\n  é中\n\nabcd ab"),
    ],
)
def test_a_text_ends_before_the_first_stop_string_however_it_is_cut(stop, kept, sizes, seed):
    text = "def f():\n  é中\n\nabcd abababac"
    row = written(text, stop, sizes, seed)
    assert row.text == (text if kept is None else kept)
    assert row.stop_reason == ("length" if kept is None else "stop_string")
    assert not any(string in row.text for string in stop)


def test_nothing_of_a_stop_string_is_shown_before_it_is_known_to_be_none():
    row, shown = Continuation(["def "]), []
    for letter in "ab de dex":
        row.append(Token(0, -1.0), letter.encode())
        shown.append(row.text)
    assert shown == ["a", "ab", "ab ", "ab ", "ab ", "ab de ", "ab de ", "ab de ", "ab de dex"]
    for letter in "de":
        row.append(Token(0, -1.0), letter.encode())
    assert row.text == "ab de dex"
    row.end("end_of_document")
    assert row.text == "ab de dexde" and row.stop_reason == "end_of_document"


def test_tokens_are_those_of_the_text():
    """Up to the one in which it ends; those of the stop string alone are not counted."""
    row = Continuation(["XY"])
    for i, piece in enumerate([b"a", b"bX", b"Z", b"cX", b"Y", b"d"]):
        if row.stop_reason is None:
            row.append(Token(i, -1.0), piece)
    assert row.text == "abXZc" and [token.id for token in row.tokens] == [0, 1, 2, 3] and row.n_generated == 5
    row = written("stop", ["stop"], [1])
    assert row.text == "" and row.tokens == []
