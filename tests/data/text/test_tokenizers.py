"""Tokenizers: what goes in comes out, nothing typed is special, nothing unseen crashes."""

from __future__ import annotations

import codecs
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quartet.data.text import tokenizers
from quartet.data.text.tokenizers import KINDS, SPLITTERS

TEXTS = [
    "def attend(q, k):\n    return q @ k  # scores\n\n\n" * 5,
    "The cat sat. The cat ran!  Twice,\tthen\r\nslept.\n",
    "天地玄黃，宇宙洪荒。日月盈昃",
    "naïve café 🙂🙂",
]
FITTED = {kind: tokenizers.fit(kind, TEXTS, 400) for kind in KINDS}
any_text = st.text(st.characters(codec="utf-8"))
any_code_points = st.text(st.characters())  # with lone surrogates


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return FITTED[request.param]


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@given(text=any_text)
@settings(deadline=None)
def test_bytes_and_byte_pairs_give_back_any_text(kind, text):
    assert FITTED[kind].decode(FITTED[kind].encode(text)) == text


def test_the_training_text_comes_back(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_code_points)
@example(text="a\ud800b")
@settings(deadline=None)
def test_no_text_crashes_and_lone_surrogates_become_question_marks(kind, text):
    tokenizer = FITTED[kind]
    clean = text.encode("utf-8", errors="replace").decode()
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encode(clean)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert sum(tokenizer.byte_counts[i] for i in ids) <= len(clean.encode())


@given(text=any_text)
@settings(deadline=None)
def test_word_pieces_are_the_text_without_gaps(text):
    assert "".join(SPLITTERS["word"](text)) == text


def test_words_keep_the_space_before_them_and_ideographs_stand_alone():
    pieces = SPLITTERS["word"]("a cat  sat.\n 天地 x_1")
    assert pieces == ["a", " cat", " ", " sat", ".", "\n", " ", "天", "地", " x_1"]


def test_a_special_token_typed_by_a_user_is_text(tokenizer):
    typed = "<eos><pad><unk>"
    fitted = tokenizers.fit(tokenizer.kind, [typed * 50], 400)
    for some in (tokenizer, fitted):
        assert not {some.pad_id, some.eos_id} & set(some.encode(typed))
    assert fitted.decode(fitted.encode(typed)) == typed


def test_unseen_characters(tokenizer):
    ids = tokenizer.encode("Ω≈")
    if tokenizer.unknown_id is None:
        assert tokenizer.decode(ids) == "Ω≈"
    else:
        assert ids == [tokenizer.unknown_id] * 2
        assert tokenizer.decode(ids) == "\ufffd\ufffd"
        assert tokenizer.byte_counts[tokenizer.unknown_id] == 1


def test_ids_that_no_text_is_made_of(tokenizer):
    special = {tokenizer.pad_id, tokenizer.eos_id, tokenizer.unknown_id} - {None}
    assert {*tokenizer.textless_ids, tokenizer.eos_id} == special
    assert not {*tokenizer.textless_ids} & {i for text in TEXTS for i in tokenizer.encode(text)}


def test_special_tokens_come_first_and_have_no_bytes(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.token_bytes[:2] == [b"", b""]
    assert tokenizer.byte_counts[:2] == (0, 0)
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) == len(tokenizer.byte_counts) <= 400


def test_byte_counts_add_up_to_the_text(tokenizer):
    for text in TEXTS:
        assert sum(tokenizer.byte_counts[i] for i in tokenizer.encode(text)) == len(text.encode())


def test_plain_json_makes_the_same_tokenizer(tokenizer):
    again = tokenizers.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.to_json() == tokenizer.to_json()
    assert again.token_bytes == tokenizer.token_bytes
    assert (again.unknown_id, again.vocab_size) == (tokenizer.unknown_id, tokenizer.vocab_size)
    assert again.encode_many(TEXTS) == tokenizer.encode_many(TEXTS)


def test_many_at_once_is_one_by_one(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizers, "GROUP", 3)  # four texts: more than one group
    assert tokenizer.encode_many(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_many([]) == []
    assert tokenizer.encode("") == []


def test_fitting_is_deterministic(tokenizer):
    assert tokenizers.fit(tokenizer.kind, TEXTS, 400).to_json() == tokenizer.to_json()


def test_ids_decode_as_they_come():
    tokenizer = FITTED["byte"]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    shown = [decoder.decode(tokenizer.token_bytes[i]) for i in tokenizer.encode("天a")]
    assert shown == ["", "", "天", "a"]


def test_byte_pairs_know_each_byte_of_utf8_and_no_more():
    shown = tokenizers.byte_alphabet()
    assert list(shown.values()) == sorted({*range(0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5)})
    assert len(set(shown)) == 243


def test_the_most_frequent_pieces_are_kept():
    assert tokenizers.fit("char", ["aaabbc"], 5).to_json()["pieces"] == ["a", "b"]
    assert tokenizers.fit("word", ["x x x y"], 4).to_json()["pieces"] == [" x"]


def test_byte_pairs_reach_the_size():
    assert FITTED["bpe"].vocab_size > 2 + 243
    assert tokenizers.fit("bpe", TEXTS, 260).vocab_size == 260


@pytest.mark.parametrize(("kind", "least"), [("char", 4), ("word", 4), ("byte", 258), ("bpe", 245)])
def test_a_size_too_small_is_refused_with_the_least(kind, least):
    assert tokenizers.fit(kind, TEXTS, least).vocab_size <= least
    with pytest.raises(ValueError, match=f"data.vocab_size={least - 1} is too small.*data.vocab_size={least} or more"):
        tokenizers.fit(kind, TEXTS, least - 1)


def test_an_unknown_kind_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"data.tokenizer must be one of char, byte, word, bpe, not 'morse'"):
        tokenizers.fit("morse", TEXTS, 400)
