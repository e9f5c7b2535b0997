"""Tables as they are published: without names of columns, with comments, in other encodings; classes called None."""

import importlib

import numpy as np
import pandas as pd
import pytest
import torch

from quartet.data.records import Format, read_records
from quartet.data.splits import SPLITS
from quartet.data.table.own_table import TableFile, determines
from quartet.old_configs import upgrade

SETTINGS = {
    "target": "y", "target_kind": "class", "drop_missing_target": False, "kinds": {}, "separator": None, "encoding": None,
    "decimal": None, "date_format": None, "missing": [], "split_column": None, "group": None, "scaling": "standard",
    "batch_size": 4, "split": [0.6, 0.2, 0.2], "split_seed": 0, "folds": None, "fold": None, "seed": 0,
}  # fmt: skip


def ready(path, **changes):
    data = TableFile(path=str(path), **{**SETTINGS, **changes})
    data.setup()
    return data


def written(folder, table):
    table.to_csv(folder / "own.csv", index=False)
    return folder / "own.csv"


def rows(n=120):
    random = np.random.default_rng(0)
    kinds = random.choice(["Private", "State-gov", "?"], n)
    return [
        f"{20 + i % 45},{kind},{1000 + i * 37 % 991},{'<=50K' if i % 3 else '>50K'}" for i, kind in enumerate(kinds)
    ]


def table(tmp_path, text, name="adult.data", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


PUBLISHED = {
    "no names, another ending": ("\n".join(rows()), "3", "no names of columns in the first line"),
    "no ending, tabs": ("\n".join(row.replace(",", "\t") for row in rows()), "3", "no names of columns"),
    "blanks": ("\n".join(row.replace(",", "   ") for row in rows()), "3", "separated by blanks"),
    "sep=;": ("sep=;\r\na;b;c;y\r\n" + "\r\n".join(row.replace(",", ";") for row in rows()), "y", None),
    "comments": ("# a table\n# of 1994\na,b,c,y\n" + "\n".join(rows()), "y", "2 lines of comment"),
    "empty columns": (
        "a,b,c,y,,\n" + "\n".join(f"{row},," for row in rows()),
        "y",
        "2 columns without a name are empty",
    ),
    "quoted lines": (
        "\n".join(f'"{row}"' for row in ["a;b;c;y", *(r.replace(",", ";") for r in rows())]),
        "y",
        "quotes",
    ),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_table_as_it_is_published(tmp_path, capsys, kind):
    text, target, note = PUBLISHED[kind]
    data = ready(table(tmp_path, text, "published" if "no ending" in kind else "adult.data"), target=target)
    assert data.spec.classes == ("<=50K", ">50K") and sum(map(len, data.ids.values())) == 120
    assert data.spec.sizes["n_numeric"] == 2 and len(data.spec.sizes["cardinalities"]) == 1
    assert note is None or note in capsys.readouterr().out


def test_a_column_may_be_typed_as_a_number(tmp_path):
    path = table(tmp_path, "\n".join(rows()))
    assert ready(path, target=3, kinds={"ignore": [2]}).columns == ["0", "1"]
    with pytest.raises(
        ValueError, match=r"data.target names a column '14' that is not there; .*the columns are 0, 1, 2, 3"
    ):
        ready(path, target=14)
    with_names = table(tmp_path, "0,1,2,3\n" + "\n".join(rows()), "named.csv")
    assert len(ready(with_names, target=3).columns) == 3


@pytest.mark.parametrize(
    ("first", "header"),
    [("country,2019,2020,y", True), ("a,b,c,y", True), ("33,Private,1200,>50K", False), ("0,1,2,3", True)],
)
def test_names_of_columns_are_told_from_values(tmp_path, first, header):
    path = table(tmp_path, "\n".join([first, *rows()]), "t.csv")
    data = ready(path, target=first.split(",")[-1] if header else "3")
    assert sum(map(len, data.ids.values())) == 121 - header
    if not header:  # the user has the last word
        assert "1200" in ready(path, target=">50K", header=True).columns


@pytest.mark.parametrize(
    ("words", "encoding"),
    [
        (["café", "größe", "naïve"], "cp1252"),
        (["很好", "一般", "不喜欢"], "gb18030"),
        (["\u201cwell\u201d", "ÄÖÜ", "œuvre"], "cp1252"),
    ],
)
def test_another_encoding_is_found_and_said(tmp_path, capsys, words, encoding):
    text = "a,c,y\n" + "".join(f"{i % 7}.5,{words[i % 3]},{'ny'[i % 2]}\n" for i in range(60))
    data = ready(table(tmp_path, text, "t.csv", encoding), target="y")
    assert f"it is not utf-8 (line 2) and read as {encoding}" in capsys.readouterr().out
    assert set(
        data.preprocessing()["categorical"][0]["categories"] if "categories" in str(data.preprocessing()) else words
    ) >= set(words)


def test_a_line_unlike_all_the_others_is_the_one_that_is_named(tmp_path):
    with pytest.raises(ValueError, match="line 1 has 2 values, and every line below it has 3"):
        ready(
            table(tmp_path, "a title, really\n" + "1,2,n\n2,3,y\n" * 20, "t.csv"),
            target="y",
            separator=",",
            header=True,
        )


@pytest.mark.parametrize("word", ["None", "NA", "null", "n/a", "?"])
def test_a_class_may_be_called_none(tmp_path, capsys, word):
    table_ = pd.DataFrame(
        {"h": np.arange(90) % 13 / 2, "y": [word, "Insomnia", "Apnea"] * 30, "g": np.repeat(["NA", "DE", "FR"], 30)}
    )
    path = written(tmp_path, table_)
    data = ready(path, kinds={"ignore": ["g"]})
    assert set(data.spec.classes) == {word, "Insomnia", "Apnea"}
    assert f"{word!r} of the target 'y' is a class like any other" in capsys.readouterr().out
    assert set(ready(path, missing=[word], drop_missing_target=True, kinds={"ignore": ["g"]}).spec.classes) == {
        "Insomnia",
        "Apnea",
    }
    assert ready(path, group="g", target="h", target_kind="number", split=[0.4, 0.3, 0.3]).ids


def test_decimal_commas_with_three_places(tmp_path, capsys):
    lines = [f"{i % 7 + 2},{i * 37 % 1000:03};0,{i * 61 % 1000:03};{i % 5 + 1},{i * 53 % 1000:03}" for i in range(100)]
    data = ready(table(tmp_path, "l;b;preis\n" + "\n".join(lines), "t.csv"), target="preis", target_kind="number")
    assert 3 < data.spec.target_mean < 4
    tied = [";".join(cell for cell in (line.split(";")[0], line.split(";")[2])) for line in lines]
    data = ready(table(tmp_path, "l;preis\n" + "\n".join(tied), "t.csv"), target="preis", target_kind="number")
    assert 3 < data.spec.target_mean < 4 and "data.decimal='.' reads it otherwise" in capsys.readouterr().out


def test_duplicates_can_be_left_out(tmp_path):
    half = pd.DataFrame({"a": np.arange(60) * 7 % 31, "c": ["u", "v"] * 30, "y": [0, 1, 1] * 20})
    data = ready(written(tmp_path, pd.concat([half, half])), drop_duplicates=True)
    assert sum(len(data.ids[part]) for part in SPLITS) == len(half.drop_duplicates())
    assert not any(note.endswith("repeat another one") for note in data.report()["notes"])


def test_a_column_that_tells_the_target_is_named(tmp_path, capsys):
    y = np.arange(120) * 7 % 11 > 5
    columns = {"a": np.arange(120) % 17 / 2, "alive": np.where(y, "yes", "no"), "y": y.astype(int)}
    ready(written(tmp_path, pd.DataFrame(columns)))
    out = capsys.readouterr().out
    assert out.count("warning: ") == 1 and "column 'alive' alone tells the target 'y' of every training row" in out


def test_honest_features_do_not_tell_the_target():
    random = np.random.default_rng(0)
    target = random.choice(["a", "b"], 200).astype(object)
    assert not determines(random.normal(size=200) + 3 * (target == "a"), target)
    assert determines(np.where(target == "a", 1.0, 2.0), target)
    assert not determines(np.array([f"name {i}" for i in range(200)], dtype=object), target)
    assert not determines(np.where(target == "a", 1.0, 2.0)[:20], target[:20])
    quantity = random.normal(size=200)
    assert determines(2 * quantity + 1, quantity) and not determines(quantity + 0.1 * random.normal(size=200), quantity)


def test_many_columns_are_read_in_seconds(tmp_path):
    import time

    names = ",".join(f"c{i}" for i in range(20_000))
    line = ",".join(str(i % 10) for i in range(20_000))
    path = table(tmp_path, f"{names}\n{line}\n{line}\n{line}\n")
    began = time.monotonic()
    found = read_records(str(path), Format(named=frozenset({"c7"})))
    assert found.cells.num_columns == 20_000 and time.monotonic() - began < 10  # 15 s where each name is counted anew


# one reader for all formats


@pytest.mark.parametrize("decimal", [".", ","])
def test_a_table_and_its_twins_in_other_formats_are_the_same_data(tmp_path, decimal):
    random = np.random.default_rng(0)
    own = pd.DataFrame(
        {
            "a": random.normal(size=80).round(3),
            "n": random.integers(0, 30, 80),
            "c": random.choice(["u", "v w", "NA"], 80),
            "when": pd.date_range("2024-01-01", periods=80, freq="31h").astype(str),
            "flag": random.choice([True, False], 80),
            "g": np.arange(80) // 4,
            "y": np.arange(80) % 3,
        }
    )
    own.to_csv(tmp_path / "t.csv", index=False, sep=";" if decimal == "," else ",", decimal=decimal)
    own.to_parquet(tmp_path / "t.parquet")
    own.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    first, *others = (ready(tmp_path / f"t.{name}", group="g") for name in ("csv", "parquet", "jsonl"))
    for other in others:
        assert other.ids == first.ids
        expected = {**first.preprocessing(), "fingerprint": 0, "schema": {**first.schema, "decimal": "."}}
        assert {**other.preprocessing(), "fingerprint": 0} == expected
        for one, two in zip(first.train_dataloader(), other.train_dataloader(), strict=True):
            assert torch.equal(one["target"], two["target"])
            assert all(torch.equal(one["inputs"][name], two["inputs"][name]) for name in one["inputs"])


def test_a_folder_has_a_file_for_each_part(tmp_path, capsys):
    for name, n in (("train", 60), ("dev", 12), ("test", 12)):
        rows = pd.DataFrame({"a": np.arange(n) * 7 % 11 / 2, "c": ["u", "v"] * (n // 2), "y": [0, 1, 1] * (n // 3)})
        rows[["y", "c", "a"] if name == "test" else ["a", "c", "y"]].to_csv(tmp_path / f"{name}.csv", index=False)
    data = ready(tmp_path)
    assert {part: len(ids) for part, ids in data.ids.items()} == {"train": 60, "val": 12, "test": 12}
    (tmp_path / "test.csv").write_text("a,c,y\n1,u,0\n2,v,1\nmany,v,1\n")
    with pytest.raises(ValueError, match=r"column 'a' must hold a number, but test.csv, row 3 has 'many'"):
        ready(tmp_path)
    with pytest.raises(ValueError, match=r"it has a file for each part; leave out data.split_column=c"):
        ready(tmp_path, split_column="c")
    (tmp_path / "test.csv").write_text("a,y\n1,0\n2,1\n")
    ready(tmp_path)
    assert "test.csv: it has no column c: no values" in capsys.readouterr().out


@pytest.mark.parametrize(
    "target",
    ["tables.TableData", "table_files.TableFile", "labelled_text.OwnLabelledText", "text.OwnText", "text.shakespeare"],
)
def test_runs_made_before_name_the_former_modules(compose, target):
    config = compose("model=mlp", "data=csv")
    config.data._target_ = f"quartet.data.{target}"
    module, _, name = upgrade(config).data._target_.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
