"""Labelled texts: parts are disjoint and kept where given, nothing is fitted outside train, mistakes name file and line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
import torch
from samples import check_that_only_train_is_fitted, check_that_texts_are_restored

from quartet.data.text.classification import OwnLabelledText, TextClassificationData, bucketed, unique_texts
from quartet.data.text.language_modeling import padded
from quartet.data.text.sources import LabelledText

COMMON = {"batch_size": 3, "split": [0.8, 0.1, 0.1], "split_seed": 0, "folds": None, "fold": None, "seed": 0}
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

    def rows(self) -> list[LabelledText]:
        return self.content


def classifier(rows=ROWS, **settings) -> TextClassificationData:
    values = {"tokenizer": "word", "vocab_size": 300, "context_length": 6, **COMMON, **settings}
    return TextClassificationData(source=Given(rows), **values)


def ready(data):
    data.setup()
    return data


def test_nothing_is_fitted_outside_train():
    data = ready(classifier())
    outside = {*data.ids["val"], *data.ids["test"]}
    changed = ready(classifier([replace(x, text=x.text + " ÆØ") if x.group in outside else x for x in ROWS]))
    check_that_only_train_is_fitted(data, changed)


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
def test_a_restored_module_gives_the_same_and_refuses_changed_data(tokenizer):
    data, restored = ready(classifier(tokenizer=tokenizer)), classifier(tokenizer=tokenizer)
    check_that_texts_are_restored(data, restored, classifier(ROWS[:-1], tokenizer=tokenizer))


def test_the_spec():
    data = ready(classifier())
    sizes = {"vocab_size": data.tokenizer.vocab_size, "context_length": 6, "n_classes": 2, "pad_id": 0}
    assert data.spec.sizes == sizes
    assert data.spec.classes == ("news", "sport")
    assert data.spec.class_counts == (40, 40)


def test_classes_that_are_numbers_are_in_their_order():
    rows = [replace(row, label=str(i % 12)) for i, row in enumerate(ROWS)]
    assert ready(classifier([replace(row, group=None) for row in rows])).classes == tuple(map(str, range(12)))


def test_the_tokenizer_of_a_language_model_is_taken():
    data = classifier()
    tokenizer = ready(classifier(tokenizer="char")).preprocessing()["tokenizer"]
    assert data.reuse({"tokenizer": tokenizer}) == "tokenizer"
    assert ready(data).preprocessing()["tokenizer"] == tokenizer


def test_the_report_is_plain_and_counts():
    rows = [*ROWS, replace(ROWS[0], text=ROWS[0].text + "  ", label="news")]
    report = json.loads(json.dumps(ready(classifier(rows, context_length=4)).report()))
    assert "1 repeated texts dropped" in report["notes"]
    assert any(note.startswith("1 texts stand with more than one label") for note in report["notes"])
    assert report["classes"]["news"] == {"train": 40, "val": 5, "test": 5}
    assert report["parts"]["train"]["samples"] == report["parts"]["train"]["truncated"] == 80  # all have 5 words
    assert {example["label"] for example in report["examples"]} == {"news", "sport"}
    assert sum(report["histograms"]["tokens of a text"]["counts"]["test"]) == 10


def test_the_start_of_a_text_is_kept():
    data = ready(classifier(context_length=2))
    tokens = data.encode(["sport of file"])["tokens"]
    assert tokens.dtype == torch.int64
    assert data.tokenizer.decode(tokens[0].tolist()) == "sport of"


def test_a_batch_is_as_wide_as_its_longest_text():
    rows = [replace(row, text=row.text + " of file" * (i % 5)) for i, row in enumerate(ROWS)]
    data = ready(classifier(rows, context_length=9))
    widths = set()
    for batch in data.train_dataloader():
        tokens = batch["inputs"]["tokens"]
        widths.add(tokens.shape[1])
        assert tokens.dtype == torch.int64
        assert bool((tokens[:, -1] != 0).any())
    assert len(widths) > 1 and max(widths) == 9


def test_empty_texts_are_one_pad_wide():
    assert padded([[], []], 0).tolist() == [[0], [0]]
    assert ready(classifier()).encode([""])["tokens"].tolist() == [[0]]


# parts that are given, and texts that repeat


def labelled(text: str, label: str, part: str | None = None) -> LabelledText:
    return LabelledText(text, label, None, part, f"{part}: {text}")


def test_given_parts_are_kept_and_test_never_trains(capsys):
    rows = [
        *(labelled(f"train {i}", "ab"[i % 2], "train") for i in range(10)),
        labelled("in  val", "a", "train"),
        labelled("in test", "b", "train"),
        labelled("in test ", "b", "val"),
        labelled("in val", "a", "val"),
        labelled("val", "b", "val"),
        labelled("in test", "a", "test"),
        labelled("twice", "a", "test"),
        labelled("twice", "a", "test"),
    ]
    kept, notes = unique_texts(rows)
    assert [row.text for row in kept if row.part == "test"] == ["in test", "twice", "twice"]
    assert [row.text for row in kept if row.part == "val"] == ["in val", "val"]
    assert [row.text for row in kept if row.part == "train"] == [f"train {i}" for i in range(10)]
    assert notes[0].startswith("3 texts dropped from train or val") and notes[1].startswith("1 texts stand with more")
    data = ready(classifier(rows))
    assert f"note: {notes[0]}" in capsys.readouterr().out
    assert [len(data.ids[part]) for part in ("train", "val", "test")] == [10, 2, 2]  # ids name the two "twice" alike


def test_a_missing_validation_part_is_a_share_of_train():
    rows = [labelled(f"text {i}", "ab"[i % 2], "test" if i % 4 == 0 else "train") for i in range(80)]
    rows += [labelled(f"other {i}", "ab"[i % 2], "test") for i in range(20)]
    data = ready(classifier(rows))
    assert [len(data.ids[part]) for part in ("train", "val", "test")] == [54, 6, 40]


def test_a_group_in_two_given_parts():
    rows = [replace(labelled(f"text {i}", "ab"[i % 2], "train" if i else "test"), group="one") for i in range(8)]
    with pytest.raises(ValueError, match=r"the group 'one' is in train and in test \(test: text 0\); leave out"):
        classifier(rows).setup()


# mistakes


def test_a_single_class():
    with pytest.raises(ValueError, match=r"there is one class only \('sport'\), and a classifier needs two"):
        classifier([row for row in ROWS if row.label == "sport"]).setup()


def test_a_label_that_never_trains():
    # the first row of a group stands for it, so a label that is never first is not spread over the parts
    group = ready(classifier()).ids["test"][0]
    last = max(i for i, row in enumerate(ROWS) if row.group == group)
    rows = [
        replace(row, label="rare", where="a.csv, line 7") if i in (last, last - 1) else row
        for i, row in enumerate(ROWS)
    ]
    with pytest.raises(
        ValueError,
        match=r"no training example has the class 'rare', but test has \(a.csv, line 7, a.csv, line 7\); add",
    ):
        classifier(rows).setup()


def test_fewer_samples_than_a_batch():
    with pytest.raises(ValueError, match=r"data.batch_size=9999 is more than the \d+ training samples"):
        classifier(batch_size=9999).setup()


@pytest.mark.parametrize("split", [[0.8, 0.2], [0.8, 0.1, 0.2], [0, 0.5, 0.5]])
def test_shares_that_make_no_split(split):
    with pytest.raises(ValueError, match=r"data.split must be three shares"):
        classifier(split=split).setup()


# from files


def own(path, **settings) -> OwnLabelledText:
    values = {
        "path": str(path), "encoding": "utf-8", "header": "auto", "separator": None, "text": None, "label": None,
        "split_column": None, "group": None, "tokenizer": "word", "vocab_size": 300, "context_length": 6,
    }  # fmt: skip
    return OwnLabelledText(**{**values, **COMMON, **settings})


def test_a_file_of_the_user_s_with_parts_and_groups(tmp_path):
    lines = [f"a good text {i},good,{'ab'[i % 2]}{i // 10}" for i in range(40)]
    lines += [f"a bad text {i},bad,{'cd'[i % 2]}{i // 10}" for i in range(40)]
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["review,rating,author", *lines]), encoding="utf-8")
    data = ready(own(path, group="author", label="rating"))
    groups = [set(data.ids[part]) for part in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 16
    assert "columns: text = review, label = rating, group = author" in data.report()["notes"]
    plain = ready(own(path, label="rating"))
    assert {where for part in plain.ids.values() for where in part} >= {f"{path}, row 1", f"{path}, row 80"}


def test_a_class_of_the_test_file_that_never_trains(tmp_path):
    (tmp_path / "train.tsv").write_text("".join(f"text {i}\t{i % 2}\n" for i in range(20)))
    (tmp_path / "test.tsv").write_text("a\t0\nb\t2\nc\t2\n")
    with pytest.raises(
        ValueError,
        match=r"no training example has the class '2', but test has \(.*test.tsv, row 2, .*test.tsv, row 3\)",
    ):
        own(tmp_path).setup()


@pytest.mark.parametrize("n", [7, 40, 161])
def test_bucketed_batches_hold_texts_of_like_length_and_each_text_once(n):
    lengths = torch.randint(1, 100, (n,), generator=torch.Generator().manual_seed(0))
    order = bucketed(lengths, 4, seed=3)
    assert sorted(order(0).tolist()) == list(range(n))
    assert torch.equal(order(1), order(1)) and not torch.equal(order(0), order(1))
    padding = [int((x.max() - x).sum()) for x in lengths[order(0)].split(4)]
    unsorted = [int((x.max() - x).sum()) for x in lengths.split(4)]
    assert n < 40 or sum(padding) < sum(unsorted) / 3
