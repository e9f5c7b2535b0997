"""Words stay whole in every script, and any text comes back."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quartet.data.text import tokenizers

WORDS = {
    "English": "language model training",
    "French": "élève préféré garçon",
    "French, decomposed": unicodedata.normalize("NFD", "élève préféré garçon"),
    "Hindi": "हिन्दी भाषा प्रशिक्षण",
    "Tamil": "தமிழ் மொழி பயிற்சி",
    "Telugu": "తెలుగు భాష శిక్షణ",
    "Bengali": "বাংলা ভাষা প্রশিক্ষণ",
    "Arabic with vowels": "اللُّغَةُ العَرَبِيَّةُ تَدْرِيبٌ",
    "Hebrew with points": "שָׁלוֹם עִבְרִית אִמּוּן",
    "Persian with joiners": "می\u200cخواهم نمی\u200cدانم کتاب\u200cها",
    "Thai": "ภาษาไทย การฝึก น้ำ",
    "emoji with joiners": "👩\u200d💻 ❤️ 👍🏽",
}


@pytest.mark.parametrize("script", WORDS)
@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_word_that_repeats_becomes_one_token(kind, script):
    text = f"{WORDS[script]} " * 200
    tokenizer = tokenizers.fit(kind, [text], 4096)
    ids = tokenizer.encode(text)
    alone = script.startswith("emoji") and kind == "word"  # no space belongs to a sign
    assert len(ids) / (3 * 200) == pytest.approx(2.0 if alone else 1.0, abs=0.02)
    assert tokenizer.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_is_cut_completely(text):
    for tokenizer in (tokenizers.fit("word", [text], 4096), tokenizers.fit("bpe", ["the cat हिन्दी é"], 400)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ascii_is_cut_as_before():
    """GPT-2's own expression, which Hugging Face applies with use_regex; what repeats often is one token."""
    from tokenizers import pre_tokenizers

    text = "def f(self, x=1.5):\n\treturn [i for i in x if i!=2]  # it's 'odd'\n\n" * 200
    tokenizer = tokenizers.fit("bpe", [text], 4096)
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert [tokenizer.decode([i]) for i in tokenizer.encode(text)] == [text[a:b] for _, (a, b) in pieces]
