"""The user's own table: read, split, fitted on the training rows, predicted by name; each mistake in one line."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from samples import sample_table

from quartet.commands.evaluate import evaluate
from quartet.commands.train import create_and_train
from quartet.data.table.own_table import TableFile

SETTINGS = {
    "target": "y",
    "target_kind": "class",
    "drop_missing_target": False,
    "kinds": {},
    "separator": None,
    "encoding": "utf-8",
    "decimal": None,
    "date_format": None,
    "missing": [],
    "split_column": None,
    "group": None,
    "scaling": "standard",
    "batch_size": 4,
    "split": [0.6, 0.2, 0.2],
    "split_seed": 0,
    "folds": None,
    "fold": None,
    "seed": 0,
}


def module(path, **changes):
    return TableFile(path=str(path), **{**SETTINGS, **changes})


def ready(path, **changes):
    data = module(path, **changes)
    data.setup()
    return data


def written(folder, table, name="own.csv", **how):
    path = folder / name
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path, index=False, **how)
    return path


def frame(n=40, **columns):
    random = np.random.default_rng(0)
    base = {"a": random.normal(size=n).round(3), "c": random.choice(["u", "v"], n), "y": np.arange(n) % 2}
    return pd.DataFrame({**base, **columns})


def inputs_of(data, part):
    return data.datasets[part].gather(torch.arange(len(data.datasets[part])))["inputs"]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in ("numeric", "categorical"))


# a table with everything


def sample(tmp_path, **changes):
    return ready(sample_table(tmp_path), target="diagnosis", split_column="part", **changes)


def test_a_column_of_every_kind(tmp_path, capsys):
    data = sample(tmp_path, group="hospital")
    kinds = {column["column"]: column["kind"] for column in data.report()["columns"]}
    assert kinds == {
        "patient_id": "ignore", "texture": "numeric", "concavity": "numeric", "city": "categorical", "smoker": "boolean",
        "seen": "date", "remark": "ignore", "country": "ignore", "radius": "numeric",
    }  # fmt: skip
    assert data.columns == ["texture", "concavity", "city", "smoker", "seen", "radius"]
    assert data.spec.classes == ("benign", "malignant") and data.spec.sizes["cardinalities"] == [5, 3]
    assert {part: len(ids) for part, ids in data.ids.items()} == {"train": 96, "val": 12, "test": 12}
    notes = capsys.readouterr().out
    assert notes.count("note: ") == 3 and "'remark' is ignored: it is text or a code that differs" in notes
    city = inputs_of(data, "test")["categorical"][:, 0]
    assert (city == 0).sum() >= 6  # Paris is in the test part only


def test_predictions_go_by_name_from_any_source(tmp_path):
    data = sample(tmp_path)
    restored = module("gone.csv", target="diagnosis", split_column="part")
    restored.restore(json.loads(json.dumps(data.preprocessing())))
    texts = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False).iloc[data.ids["test"]]
    values = pd.read_csv(tmp_path / "table.csv", parse_dates=["seen"]).iloc[data.ids["test"]]
    shuffled = values[values.columns[::-1]].assign(unknown="x", **{" note": 1})
    records = texts.drop(columns=["diagnosis", "patient_id", "part"]).to_dict("records")
    for rows in (texts, values, shuffled, records, values.to_dict("records")):
        assert same(restored.encode(rows), inputs_of(data, "test"))
    assert restored.encode([])["numeric"].shape[0] == 0
    one_by_one = [restored.encode([row])["numeric"] for row in records]
    assert torch.equal(torch.cat(one_by_one), inputs_of(data, "test")["numeric"])


def test_an_absent_column_and_a_strange_value_are_named_at_prediction(tmp_path):
    data = sample(tmp_path)
    row = dict.fromkeys(data.columns)
    with pytest.raises(ValueError, match="row 2 has no column 'city', 'seen'; give an empty value"):
        data.encode([row, {name: None for name in row if name not in ("city", "seen")}])
    with pytest.raises(ValueError, match="row 1 has no column 'city'"):
        data.encode(pd.DataFrame([row]).drop(columns="city"))
    with pytest.raises(ValueError, match="column 'texture' must hold a number, but row 2 has 'rough'"):
        data.encode([row, {**row, "texture": "rough"}])


@pytest.mark.parametrize("scaling", ["standard", "minmax", "quantile"])
def test_only_the_training_part_is_fitted(tmp_path, scaling):
    fitted = sample(tmp_path, scaling=scaling).preprocessing()
    table = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    held_out = table["part"].isin(["valid", "TEST"])
    changes = {"texture": "1e6", "city": "Rome", "smoker": "", "seen": "1900-01-01", "country": "FR", "radius": "-7"}
    table.loc[held_out, list(changes)] = list(changes.values())
    table.loc[held_out, "diagnosis"] = "benign"
    refitted = ready(written(tmp_path, table), target="diagnosis", split_column="part", scaling=scaling).preprocessing()
    assert refitted["fingerprint"] != fitted["fingerprint"]
    assert {**refitted, "fingerprint": 0} == {**fitted, "fingerprint": 0}


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("class", ["data.target=diagnosis", "model.ensemble=3", "model.numeric_embedding=piecewise_linear"]),
        ("number", ["data.target=radius", "task=regression", "model.ensemble=2", "model.numeric_embedding=periodic"]),
    ],
)
def test_own_table_trains_and_evaluates(compose, tmp_path, task, overrides):
    own = [f"data.path={sample_table(tmp_path)}", "data.split_column=part", "data.group=hospital", "data.batch_size=8"]
    brief = ["model.hidden=[8]", "trainer.max_steps=6", "trainer.max_epochs=-1", "callbacks.figures=null"]
    run, result = create_and_train(compose("model=mlp", "data=csv", *own, *overrides, *brief))
    assert result["status"] == "completed" and result["steps"] == 6
    measured = evaluate(run, "test")
    assert measured == pytest.approx({k: v for k, v in result["metrics"].items() if k.startswith("test")}, abs=1e-6)
    assert ("test/accuracy" in measured) == (task == "class")
    notes = run.read("data.json")["notes"]
    assert notes[0] == f"the target {'diagnosis is binary' if task == 'class' else 'radius is a number'}"


# formats


@pytest.mark.parametrize(
    ("name", "how", "changes"),
    [
        ("own.csv", {"sep": ";", "decimal": ","}, {}),
        ("own.tsv", {"sep": "\t"}, {}),
        ("own.txt", {"sep": "|"}, {}),
        ("own.csv", {"sep": "\t"}, {"separator": "tab"}),
        ("own.csv", {"encoding": "utf-16"}, {"encoding": "utf-16"}),
        ("own.csv", {"encoding": "latin-1"}, {"encoding": "latin-1"}),
        ("own.csv", {"encoding": "utf-8-sig", "lineterminator": "\r\n"}, {}),
        ("own.csv", {"quoting": 1}, {}),
        ("own.parquet", {}, {}),
    ],
)
def test_every_format_gives_the_same_inputs(tmp_path, name, how, changes):
    table = frame(**{"größe": np.arange(40)[::-1] * 1.5, "when": pd.date_range("2024-01-01", periods=40, freq="31h")})
    plain = ready(written(tmp_path, table, "plain.csv"))
    other = ready(written(tmp_path, table, name, **how), **changes)
    assert {**other.preprocessing(), "fingerprint": 0, "schema": 0} == {
        **plain.preprocessing(),
        "fingerprint": 0,
        "schema": 0,
    }
    assert all(same(inputs_of(plain, part), inputs_of(other, part)) for part in ("train", "val", "test"))


def test_text_with_line_ends_separators_and_quotes_inside(tmp_path):
    words = ['a "b", c\nd', "plain"] * 20
    data = ready(written(tmp_path, frame(c=words)))
    assert data.schema["columns"][1] == {"name": "c", "kind": "categorical"}
    assert data.preprocessing()["categorical"][0]["categories"] == ['a "b", c\nd', "plain"]


def test_names_lose_their_spaces_and_an_unnamed_column_is_an_index(tmp_path):
    table = frame().rename(columns={"a": " a "})
    table.index = np.random.default_rng(0).permutation(40)
    table.to_csv(tmp_path / "own.csv")
    assert ready(tmp_path / "own.csv").columns == ["a", "c"]


def test_kinds_and_missing_words_are_overridable(tmp_path):
    table = frame(zip=[10115, 80331] * 20, flag=[0, 1, 1, 0] * 10, a=["-999", "1", "2", "unknown"] * 10)
    path = written(tmp_path, table)
    data = ready(path, kinds={"categorical": ["zip"], "boolean": ["flag"], "ignore": ["c"]}, missing=[-999, "unknown"])
    assert data.columns == ["a", "zip", "flag"]
    kinds = {column["column"]: (column["kind"], column["missing"]) for column in data.report()["columns"]}
    assert kinds == {"a": ("numeric", 0.5), "c": ("ignore", 0), "zip": ("categorical", 0), "flag": ("boolean", 0)}


# targets


def test_classes_stand_in_the_order_of_their_numbers(tmp_path):
    assert ready(written(tmp_path, frame(y=[10.0, 2.0, 1.0, 2.0] * 10))).spec.classes == ("1", "2", "10")
    assert ready(written(tmp_path, frame(y=["no", "yes"] * 20))).spec.classes == ("no", "yes")


def test_classes_keep_their_shares_and_are_counted(tmp_path):
    data = ready(written(tmp_path, frame(n=100, y=["rare"] * 20 + ["usual"] * 80)))
    assert data.report()["classes"] == {
        "rare": {"train": 12, "val": 4, "test": 4},
        "usual": {"train": 48, "val": 16, "test": 16},
    }
    assert data.spec.class_counts == (12, 48)


def test_many_numbers_are_classes_where_the_user_says_so(tmp_path):
    path = written(tmp_path, frame(n=110, y=np.arange(110) % 22))
    assert len(ready(path, kinds={"categorical": ["y"]}).spec.classes) == 22


def test_a_number_is_standardised_in_its_own_decimal(tmp_path):
    table = frame(y=np.linspace(1000.5, 5000.5, 40))
    plain = ready(written(tmp_path, table), target_kind="number").spec
    german = ready(written(tmp_path, table, "g.csv", sep=";", decimal=","), target_kind="number").spec
    assert german == plain and plain.classes == () and plain.sizes["n_outputs"] == 1 and 2000 < plain.target_mean < 4000


def test_rows_without_a_target_are_left_out_on_demand(tmp_path):
    path = written(tmp_path, frame(y=[None, "x", "y", "x"] * 10))
    data = ready(path, drop_missing_target=True)
    assert sum(map(len, data.ids.values())) == 30
    assert "10 rows without a target were left out" in data.report()["notes"]


def test_repeated_rows_stay_and_are_counted(tmp_path, capsys):
    table = frame(n=30, part=["train"] * 20 + ["val"] * 5 + ["test"] * 5)
    table.loc[[26, 27], ["a", "c", "y"]] = table.loc[3, ["a", "c", "y"]].values
    path = written(tmp_path, table)
    notes = ready(path, split_column="part").report()["notes"]
    assert "2 rows repeat another one" in notes and "2 test rows are also in train" in notes
    assert (
        f"note: {path}: 2 of 5 test rows are also in train, which makes test metrics better" in capsys.readouterr().out
    )


# splits


def test_official_parts_are_kept_whatever_they_are_called(tmp_path):
    names = ["train", "Training", "dev", "VALID", "validation", "test", "train", "testing", "train", "val"]
    data = ready(written(tmp_path, frame(part=names * 4, y=np.repeat([0, 1], 20))), split_column="part")
    assert {i % 10 for i in data.ids["val"]} == {2, 3, 4, 9} and {i % 10 for i in data.ids["test"]} == {5, 7}
    assert "part" not in data.columns


def test_a_missing_part_takes_its_share_of_train(tmp_path):
    data = ready(written(tmp_path, frame(part=["train"] * 30 + ["test"] * 10)), split_column="part")
    assert data.ids["test"] == list(range(30, 40)) and len(data.ids["val"]) == 6


def test_groups_stay_together_and_are_no_input(tmp_path):
    groups = [i // 4 for i in range(40)]
    data = ready(written(tmp_path, frame(house=groups)), group="house")
    where = [{groups[i] for i in ids} for ids in data.ids.values()]
    assert sum(map(len, where)) == 10 and "house" not in data.columns


def test_folds(tmp_path):
    path = written(tmp_path, frame())
    folds = [ready(path, folds=4, fold=k).ids for k in range(4)]
    assert sorted(i for fold in folds for i in fold["val"]) == sorted(folds[0]["train"] + folds[0]["val"])


def test_changed_data_are_refused(tmp_path):
    data = ready(written(tmp_path, frame()))
    again = module(written(tmp_path, frame(n=41)))
    again.restore(data.preprocessing())
    with pytest.raises(ValueError, match="the data have changed"):
        again.setup()


# mistakes: one line each, with file and remedy

GOOD = "a,c,y\n" + "".join(f"{i * 7 % 5}.5,{'uv'[i % 2]},{['no', 'yes'][i // 2 % 2]}\n" for i in range(20))
FILES = [
    ("empty", b"", r"the file is empty; it needs a line of column names"),
    ("blank", b"\n \n", r"the file is empty"),
    ("header only", b"a,c,y\n", r"there are column names but no rows"),
    ("binary", b"\x89PNG\0\0" + bytes(range(256)), r"is binary, not text; use CSV, JSON Lines or Parquet"),
    ("parquet inside", b"PAR1\0\0", r"begins like Parquet but is not, or it is damaged"),
    ("encoding", "a,y\n1,größe\n".encode("latin-1"), r"is not utf-8 \(line 2, byte 0xf6\); .* data.encoding=cp1252"),
    ("duplicate names", b"a,y,a\n1,2,3\n", r"several columns are called 'a'; give each a name"),
    ("too long", f"{GOOD}1,2,3,4\n", r"line 22: 4 values, but there are 3 columns .*; correct the line"),
    ("too short", GOOD.replace("3.5,u,yes", "3.5,u", 1), r"line \d+: 2 values, but there are 3 columns"),
    (
        "one class",
        GOOD.replace("no", "yes"),
        r"there is one class only \('yes'\), and a classifier needs two",
    ),
    ("one example", f"{GOOD}1,u,rare\n", r"only one example of the class 'rare' \(row 21\)"),
    (
        "missing target",
        f"{GOOD}1,u,\n2,u,NA\n",
        r"no target 'y' in 1 of 22 rows \(row 21\); data.drop_missing_target=true",
    ),
    ("empty target", "a,c,y\n" + "1,u,\n2,v,\n" * 10, r"no row has a target: column 'y' is empty; fill it, or name"),
    (
        "empty column",
        GOOD.replace(".5,u", ".5,").replace(".5,v", ".5,"),
        r"no value in the training rows of column 'c'; .*data.kinds.ignore=\[c\]",
    ),
    ("infinite", f"{GOOD}inf,u,no\n", r"column 'a' is infinite in row 21; .*data.kinds.ignore=\[a\]"),
    ("no input", "x,y\n" + "1,a\n1,b\n" * 10, r"no column is left besides the target 'y'; is data.separator right\?"),
    (
        "quantity",
        "a,y\n" + "".join(f"{i % 3},{i}.5\n" for i in range(30)),
        r"'y' looks like a quantity \(30 different numbers\): add task=regression, or data.kinds.categorical=\[y\]",
    ),
]


@pytest.mark.parametrize(("content", "message"), [x[1:] for x in FILES], ids=[x[0] for x in FILES])
def test_mistakes_in_a_file(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("own.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="^own.csv: .*" + message) as error:
        ready("own.csv", split=[1.0, 0.0, 0.0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, r"say which column to predict: data.target=<one of a, c, y>"),
        ({"target": "Y"}, r"data.target names a column 'Y' that is not there; the columns are a, c, y"),
        ({"target": "cc"}, r"'cc' that is not there; did you mean 'c'\? the columns are a, c, y"),
        ({"split_column": "part"}, r"data.split_column names a column 'part' that is not there"),
        ({"group": "house"}, r"data.group names a column 'house' that is not there"),
        ({"kinds": {"ignore": ["id"]}}, r"data.kinds names a column 'id' that is not there; the columns are a, c, y"),
        (
            {"target_kind": "number"},
            r"task=regression needs numbers, but the target 'y' has text such as 'no'; task=class",
        ),
        ({"split_column": "c"}, r"data.split_column has 'u' in row 1, .*; it must say one of train"),
        ({"separator": ";;"}, r"data.separator must be one character, or tab, not ';;'"),
        ({"encoding": "utf-9"}, r"data.encoding=utf-9 is unknown; utf-8, latin-1"),
        ({"encoding": "ascii"}, r"is not ascii \(line 2"),
        ({"kinds": {"numeric": ["c"]}}, r"column 'c' must hold a number, but row \d+ has 'u'"),
        ({"kinds": {"date": ["c"]}}, r"column 'c' has dates of no known form"),
    ],
)
def test_mistakes_in_the_settings(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    text = GOOD.replace("u", "ü", 1) if changes.get("encoding") == "ascii" else GOOD
    Path("own.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="^own.csv: .*" + message) as error:
        ready("own.csv", **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({"y": ["a", "b", "a", "b"] * 5, "part": ["train"] * 16 + ["val"] * 4}, {"y": {17: "new", 19: "new"}},
         r"no training example has the class 'new', but val has \(row 18, 20\); add such"),
        ({"part": ["val", "test"] * 10}, {}, r"data.split_column never says train, only test, val"),
        ({"part": ["train", None] * 10}, {}, r"data.split_column has None in row 2, 4, 6, 8 and 6 more; it must say"),
        ({"part": ["train", "test"] * 10, "g": ["x"] * 20}, {}, r"the group 'x' is in train and in test"),
        ({"part": ["train"] * 20, "g": ["x", None] * 10}, {}, r"data.group=g is empty in row 2, 4"),
    ],
)  # fmt: skip
def test_mistakes_in_official_parts_and_groups(tmp_path, columns, changes, message):
    table = frame(n=20, **columns)
    for name, cells in changes.items():
        for row, value in cells.items():
            table.loc[row, name] = value
    with pytest.raises(ValueError, match=message):
        ready(written(tmp_path, table), split_column="part", group="g" if "g" in columns else None)


def test_a_stray_word_in_a_number_to_predict(tmp_path):
    with pytest.raises(ValueError, match=r"the target 'y' has 'many' in row 1, not a number; .*data.missing=\[many\]"):
        ready(written(tmp_path, frame(n=20, y=["many", *range(19)])), target_kind="number")


def test_an_infinite_number_to_predict(tmp_path):
    with pytest.raises(ValueError, match=r"the target 'y' is infinite in row 1; .* data.drop_missing_target=true"):
        ready(written(tmp_path, frame(n=20, y=["-inf", *range(19)])), target_kind="number")


def test_a_class_of_the_test_rows_that_training_lacks_for_its_group(tmp_path):
    table = frame(n=40, y=["a", "b"] * 19 + ["c", "c"], part=["train"] * 38 + ["test"] * 2)
    with pytest.raises(ValueError, match="no training example has the class 'c', but test has"):
        ready(written(tmp_path, table), split_column="part")


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"data.path is missing: .*data.path=table.csv"):
        TableFile(path=None, **SETTINGS).setup()
    with pytest.raises(FileNotFoundError, match=r"^nowhere.csv does not exist; data.path is relative"):
        ready("nowhere.csv")
    with pytest.raises(ValueError, match=r"has no train.csv, .* name the training file so"):
        ready(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", "/dev/zero"):
        with pytest.raises(ValueError, match=r"is not a regular file; name a CSV, JSON Lines or Parquet file"):
            ready(path)
    with pytest.raises(ValueError, match="begins like Parquet but is not, or it is damaged"):
        (tmp_path / "own.pq").write_bytes(b"PAR1 and nothing")
        ready(tmp_path / "own.pq")

    def refuse(*_, **__):
        raise PermissionError

    path = written(tmp_path, frame())
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read .*own.csv; .*chmod \+r"):
        ready(path)


def test_columns_of_parquet_that_hold_lists(tmp_path):
    with pytest.raises(ValueError, match=r"column 'a' holds list<.*>, not one value a row"):
        ready(written(tmp_path, frame(n=4, a=[[1, 2]] * 4), "own.parquet"))


def test_settings_are_checked_before_the_file_is_read(compose):
    from quartet.build import check

    with pytest.raises(ValueError) as error:
        check(compose("model=mlp", "data=csv", "data.decimal=x", "+data.kinds.number=[a]"))
    assert sorted(line.split(" ")[0] for line in str(error.value).splitlines()) == [
        "data.decimal",
        "data.kinds",
        "data.path",
    ]


def test_classes_that_look_the_same_are_refused(tmp_path):
    """é is written as one sign or as two; letters that differ in case or accent are other classes."""
    names = ["a", "A", "caf\u00e9", "cafe"]
    assert ready(written(tmp_path, frame(y=names * 10))).spec.classes == tuple(sorted(names))
    twins = written(tmp_path, frame(y=["a", "b", "caf\u00e9", "cafe\u0301"] * 10), "twins.csv")
    with pytest.raises(ValueError, match=r"'cafe\\u0301' and 'caf\\xe9' look the same"):
        ready(twins)
