"""Text data: windows cover the stream once, streams continue, parts are disjoint, nothing is fitted outside train."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quartet.data.memory import MemoryLoader
from quartet.data.sources import Document, LabelledText, Shakespeare
from quartet.data.splits import Split
from quartet.data.text import (
    LanguageModelingData,
    TextClassificationData,
    Windows,
    contiguous,
    padded,
    shakespeare,
    shuffled_windows,
    split_documents,
)

COMMON = {"batch_size": 3, "split": [0.8, 0.1, 0.1], "split_seed": 0, "folds": None, "fold": None, "seed": 0}
DOCUMENTS = [Document(f"{i}.txt", f"document {i} says {i * i} and {i**3}. " * 4) for i in range(20)]
ROWS = [
    LabelledText(f"{label} word{i} of file {file}", label, f"{label}/{file}")
    for label in ("sport", "news")
    for file in range(10)
    for i in range(5)
]


@dataclass
class Given:
    """A source whose content the test says."""

    content: list = field(default_factory=list)

    def documents(self) -> list[Document]:
        return self.content

    def rows(self) -> list[LabelledText]:
        return self.content


def language_model(documents=DOCUMENTS, **settings) -> LanguageModelingData:
    values = {"tokenizer": "char", "vocab_size": 300, "context_length": 8, "order": "shuffled", **COMMON, **settings}
    return LanguageModelingData(source=Given(documents), **values)


def classifier(rows=ROWS, **settings) -> TextClassificationData:
    values = {"tokenizer": "word", "vocab_size": 300, "context_length": 6, **COMMON, **settings}
    return TextClassificationData(source=Given(rows), **values)


def ready(data):
    data.setup()
    return data


def in_rank(data, rank: int, world: int):
    """The module as one of several workers sees it."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=rank, world_size=world)
    return data


# windows


@given(length=st.integers(9, 200), epoch=st.integers(0, 9), seed=st.integers(0, 9))
def test_shuffled_windows_see_each_target_at_most_once(length, epoch, seed):
    windows = Windows(torch.arange(length, dtype=torch.int32), 8)
    ids = shuffled_windows(len(windows), 8, seed)(epoch)
    batch = windows.gather(ids)
    targets = batch["target"].flatten().tolist()
    assert len(targets) == len(set(targets)) == 8 * len(windows) >= length - 8
    assert torch.equal(batch["target"], (batch["inputs"]["tokens"] + 1) % length)
    assert torch.equal(batch["index"], batch["inputs"]["tokens"][:, 0])  # the id is the start
    assert torch.equal(ids, shuffled_windows(len(windows), 8, seed)(epoch))


def test_every_epoch_has_its_own_offset_and_order():
    epochs = [shuffled_windows(40, 16, 0)(epoch) for epoch in range(20)]
    assert len({int(ids[0]) % 16 for ids in epochs}) > 5  # 20 draws of 16: by chance impossible
    assert len({tuple(ids.argsort().tolist()) for ids in epochs}) == 20
    assert all(0 <= int(ids.min()) < 16 for ids in epochs)


@given(n=st.integers(1, 100), n_streams=st.integers(1, 12))
def test_a_contiguous_order_holds_everything_and_continues_each_row(n, n_streams):
    order = contiguous(n, n_streams)(0).tolist()
    assert sorted(order) == list(range(n))
    steps = [order[start : start + n_streams] for start in range(0, n, n_streams)]
    for now, following in pairwise(steps):
        assert [i + 1 for i in now[: len(following)]] == following


def test_validation_covers_the_stream_in_order_up_to_a_last_piece():
    data = ready(language_model())
    for part, some in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        stream = data.datasets[part].stream  # type: ignore[attr-defined]
        tokens = torch.cat([batch["inputs"]["tokens"].flatten() for batch in some])
        assert torch.equal(tokens, stream[: len(tokens)].long())
        assert len(stream) - 1 - len(tokens) < 8


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_contiguous_rows_go_on_in_the_next_batch(part, rank, world):
    data = in_rank(ready(language_model(order="contiguous")), rank, world)
    batches = list(getattr(data, f"{part}_dataloader")())
    assert len(batches) > 1
    for now, following in pairwise(batches):
        rows = len(following["target"])
        assert torch.equal(now["target"][:rows, -1], following["inputs"]["tokens"][:, 0])
        assert torch.equal(now["index"][:rows] + 8, following["index"])
    if part == "train":
        assert {len(batch["target"]) for batch in batches} == {3}


def test_contiguous_validation_is_complete_too():
    plain, carried = ready(language_model()), ready(language_model(order="contiguous", batch_size=4))
    seen = [torch.cat([batch["index"] for batch in data.val_dataloader()]) for data in (plain, carried)]
    assert torch.equal(seen[0], seen[1].sort().values)


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
def test_workers_together_see_what_one_process_sees(order):
    alone = ready(language_model(order=order, batch_size=6))
    loaders = [in_rank(ready(language_model(order=order)), rank, 2).train_dataloader() for rank in (0, 1)]
    for batch, *shares in zip(alone.train_dataloader(), *loaders, strict=True):
        together = torch.cat([share["index"] for share in shares])
        assert torch.equal(together.sort().values, batch["index"].sort().values)


def test_seeking_gives_the_windows_that_would_have_come():
    data = ready(language_model())
    whole, resumed = data.train_dataloader(), data.train_dataloader()
    whole.seek(2, 0)
    resumed.seek(2, 5)
    for a, b in zip(list(whole)[5:], resumed, strict=True):
        assert torch.equal(a["inputs"]["tokens"], b["inputs"]["tokens"])


def test_the_stream_is_the_documents_each_followed_by_eos():
    data = ready(language_model())
    pieces = "".join(document.text + "|" for document in DOCUMENTS if document.name in data.ids["train"])
    eos = data.tokenizer.eos_id
    stream = data.datasets["train"].stream.tolist()  # type: ignore[attr-defined]
    assert "".join("|" if i == eos else data.tokenizer.decode([i]) for i in stream) == pieces


# splitting


def test_documents_are_split_as_wholes_the_same_way_each_time():
    data, again = ready(language_model()), ready(language_model())
    assert data.ids == again.ids
    assert sorted(chain.from_iterable(data.ids.values())) == sorted(document.name for document in DOCUMENTS)
    assert [len(data.ids[part]) for part in ("train", "val", "test")] == [16, 2, 2]
    assert ready(language_model(split_seed=1)).ids != data.ids
    assert ready(language_model(seed=1)).ids == data.ids


def test_folds_of_one_document_tile_what_is_not_test():
    text = DOCUMENTS[0].text
    folds = [split_documents(DOCUMENTS[:1], Split([0.8, 0.1, 0.1], 0, 4, k)) for k in range(4)]
    assert len({fold["test"][0].text for fold in folds}) == 1
    assert "".join(fold["val"][0].text for fold in folds) + folds[0]["test"][0].text == text
    for fold in folds:
        assert sum(len(document.text) for part in fold.values() for document in part) == len(text)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_documents_are_split_by_position(n):
    parts = split_documents(DOCUMENTS[:n], Split([0.8, 0.1, 0.1], 0))
    for i in range(n):
        assert "".join(parts[part][i].text for part in ("train", "val", "test")) == DOCUMENTS[i].text
    assert parts["train"][0].name == f"0.txt[0:{len(parts['train'][0].text)}]"


# preprocessing


@pytest.mark.parametrize(("make", "items"), [(language_model, DOCUMENTS), (classifier, ROWS)])
def test_nothing_is_fitted_outside_train(make, items):
    data = ready(make())
    outside = {*data.ids["val"], *data.ids["test"]}
    name = "name" if make is language_model else "group"
    changed = ready(make([replace(x, text=x.text + " ÆØ") if getattr(x, name) in outside else x for x in items]))
    assert data.ids == changed.ids
    before, after = data.preprocessing(), changed.preprocessing()
    assert before.pop("fingerprint") != after.pop("fingerprint")
    assert before == after


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
@pytest.mark.parametrize(("make", "items"), [(language_model, DOCUMENTS), (classifier, ROWS)])
def test_a_restored_module_gives_the_same_and_refuses_changed_data(make, items, tokenizer):
    data = ready(make(tokenizer=tokenizer))
    preprocessing = json.loads(json.dumps(data.preprocessing()))
    restored = make(tokenizer=tokenizer)
    restored.restore(preprocessing)
    assert restored.spec == data.spec  # before any data are read
    assert restored.encode(["a text"])["tokens"].tolist() == data.encode(["a text"])["tokens"].tolist()
    for a, b in zip(data.train_dataloader(), ready(restored).train_dataloader(), strict=True):
        assert torch.equal(a["inputs"]["tokens"], b["inputs"]["tokens"]) and torch.equal(a["target"], b["target"])
    other = make(items[:-1], tokenizer=tokenizer)
    other.restore(preprocessing)
    with pytest.raises(ValueError, match="the data have changed since the run"):
        other.setup()


def test_the_specs():
    data = ready(language_model())
    assert data.spec.sizes == {"vocab_size": data.tokenizer.vocab_size, "context_length": 8}
    assert data.spec.token_bytes == data.tokenizer.byte_counts
    labelled = ready(classifier())
    sizes = {"vocab_size": labelled.tokenizer.vocab_size, "context_length": 6, "n_classes": 2, "pad_id": 0}
    assert labelled.spec.sizes == sizes
    assert labelled.spec.classes == ("news", "sport")
    assert labelled.spec.class_counts == (40, 40)


def test_reports_are_plain_and_count():
    report = json.loads(json.dumps(ready(language_model()).report()))
    assert report["train"]["documents"] == 16
    assert report["train"]["bytes_per_token"] == pytest.approx(1, abs=0.02)
    rows = [*ROWS, replace(ROWS[0], text=ROWS[0].text + "  ")]
    report = json.loads(json.dumps(ready(classifier(rows)).report()))
    assert report["duplicates_removed"] == 1
    assert report["test"]["class_counts"] == {"news": 5, "sport": 5}
    assert report["train"]["share_at_full_length"] == 0.0


# inputs for inference


def test_the_end_of_a_prompt_and_the_start_of_a_labelled_text_are_kept():
    prompts = ready(language_model()).encode(["", "document 1 says"])["tokens"]
    assert prompts.tolist()[0] == [1] + [0] * 7  # <eos>, padded
    data = ready(language_model())
    assert data.tokenizer.decode(prompts[1].tolist()) == "t 1 says"
    labelled = ready(classifier(context_length=2))
    tokens = labelled.encode(["sport of file"])["tokens"]
    assert tokens.dtype == torch.int64
    assert labelled.tokenizer.decode(tokens[0].tolist()) == "sport of"


def test_a_batch_is_as_wide_as_its_longest_text():
    rows = [replace(row, text=row.text + " of file" * (i % 5)) for i, row in enumerate(ROWS)]
    data = ready(classifier(rows, context_length=20))
    widths = set()
    for batch in data.train_dataloader():
        tokens = batch["inputs"]["tokens"]
        widths.add(tokens.shape[1])
        assert tokens.dtype == torch.int64
        assert bool((tokens[:, -1] != 0).any())
    assert len(widths) > 1


def test_empty_texts_are_one_pad_wide():
    assert padded([[], []], 0).tolist() == [[0], [0]]
    assert ready(classifier()).encode([""])["tokens"].tolist() == [[0]]


# mistakes


def test_a_text_too_short_for_its_context():
    with pytest.raises(
        ValueError, match=r"has \d+ tokens.*data.context_length \+ 1 = 5001.*smaller data.context_length"
    ):
        language_model(context_length=5000).setup()


def test_no_documents_at_all():
    with pytest.raises(ValueError, match="has 0 tokens"):
        language_model([]).setup()


@pytest.mark.parametrize("make", [language_model, classifier])
def test_fewer_samples_than_a_batch(make):
    with pytest.raises(ValueError, match=r"data.batch_size=9999 is more than the \d+ training samples"):
        make(batch_size=9999).setup()


@pytest.mark.parametrize("make", [language_model, classifier])
@pytest.mark.parametrize("split", [[0.8, 0.2], [0.8, 0.1, 0.2], [0, 0.5, 0.5]])
def test_shares_that_make_no_split(make, split):
    with pytest.raises(ValueError, match=r"data.split must be three shares"):
        make(split=split).setup()


def test_an_unknown_order():
    with pytest.raises(ValueError, match=r"data.order must be shuffled or contiguous, not 'sorted'"):
        language_model(order="sorted")


def test_a_single_class():
    with pytest.raises(ValueError, match=r"the training texts have 1 classes \(sport\)"):
        classifier([row for row in ROWS if row.label == "sport"]).setup()


def test_a_label_that_never_trains():
    # the first row of a group stands for it, so a label that is never first is not spread over the parts
    group = ready(classifier()).ids["test"][0]
    last = max(i for i, row in enumerate(ROWS) if row.group == group)
    rows = [replace(row, label="rare") if i == last else row for i, row in enumerate(ROWS)]
    with pytest.raises(ValueError, match="no training text has the label rare"):
        classifier(rows).setup()


def test_shakespeare_takes_the_path_of_the_source():
    settings = {"tokenizer": "char", "vocab_size": 300, "context_length": 8, "order": "shuffled", **COMMON}
    assert shakespeare(path="x", download=True, **settings).source == Shakespeare(path="x", download=True)


def test_loaders_are_memory_loaders():
    data = ready(language_model())
    assert all(isinstance(some, MemoryLoader) for some in (data.train_dataloader(), data.test_dataloader()))
