"""Labelled files: separator, header and columns are found or named; every mistake is one line with file and remedy."""

from __future__ import annotations

import builtins
import json

import pytest

from quartet.data.records import Format, read_records
from quartet.data.text.classification import LabelledFiles


def source(path, **settings) -> LabelledFiles:
    values = {"header": "auto", "separator": None, "text": None, "label": None, "split_column": None, "group": None}
    return LabelledFiles(path=None if path is None else str(path), **{"encoding": "utf-8", **values, **settings})


@pytest.fixture
def write(tmp_path):
    """write("a.csv", content) -> its path; text is written as UTF-8, a list as JSON lines."""

    def write_file(name: str, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, list):
            content = "\n".join(json.dumps(record) for record in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def read(path, **settings) -> list[tuple[str, str]]:
    return [(row.text, row.label) for row in source(path, **settings).rows()]


EXPECTED = [("good film", "pos"), ("bad film", "neg"), ("fine, really", "pos"), ('a "bad" one', "neg")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\ngood film,pos\nbad film,neg\n"fine, really",pos\n"a ""bad"" one",neg\n'),
        ("a.csv", '\ufefftext,label\r\ngood film,pos\r\nbad film,neg\r\n\r\n"fine, really",pos\r\n"a ""bad"" one",neg'),
        ("a.csv", 'text;label\ngood film;pos\nbad film;neg\nfine, really;pos\n"a ""bad"" one";neg\n'),
        ("a.csv", 'pos\tgood film\nneg\tbad film\npos\tfine, really\nneg\ta "bad" one\n'),
        ("a.tsv", 'good film\tpos\nbad film\tneg\nfine, really\tpos\na "bad" one\tneg\n'),
        (
            "a.tsv",
            'label\tid\tsentence\npos\t1\tgood film\nneg\t2\tbad film\npos\t3\tfine, really\nneg\t4\ta "bad" one\n',
        ),
        ("a.jsonl", [{"text": text, "label": label} for text, label in EXPECTED]),
        ("a.jsonl", [{"y": label, "words": text, "n": i} for i, (text, label) in enumerate(EXPECTED)]),
    ],
)
def test_every_form_is_read_without_a_setting(write, name, content, capsys):
    assert read(write(name, content)) == EXPECTED
    assert "text = " in capsys.readouterr().out


def test_a_line_break_inside_quotes(write):
    path = write("a.csv", 'text,label\n"one\ntwo",a\nthree,b\nfour,a\nfive,b\n')
    rows = source(path).rows()
    assert rows[0].text == "one\ntwo"
    assert rows[1].where == f"{path}, row 2"


def test_controls_are_removed_but_tear_no_line(write):
    assert read(write("a.tsv", "a\u2028b\x07\t1\nc\t0\nd\t1\ne\t0\n"))[0] == ("a\nb", "1")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1", "1.0", "0", "0.0"], ["1", "1", "0", "0"]),
        (["0.5", ".5", "2", "2"], ["0.5", "0.5", "2", "2"]),
        (["1", "1.0", "x", "x", "1", "1.0"], ["1", "1.0", "x", "x", "1", "1.0"]),  # not all are numbers: names
        (["NA", "NA", "null", "null"], ["NA", "NA", "null", "null"]),
        ([True, True, False, False], ["true", "true", "false", "false"]),
        ([1, 1.0, 2, 2], ["1", "1", "2", "2"]),
    ],
)
def test_labels_of_any_type(write, labels, classes):
    path = write("a.jsonl", [{"text": f"some words {i}", "label": label} for i, label in enumerate(labels)])
    assert [label for _, label in read(path)] == classes


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([["text", "label"], ["a", "b"]], True),
        ([["Sentence", "x"], ["a", "x"]], True),
        ([["what", "mood"], ["a", "glad"], ["b", "sad"]], True),
        ([["good film", "pos"], ["bad film", "neg"], ["a film", "pos"]], False),
        ([["good film", "1"], ["bad film", "0"]], False),
        ([["text", "-1.5"], ["bad film", "0"]], False),
    ],
)
def test_headers(write, records, expected):
    path = write("a.csv", "".join(f"{','.join(record)}\n" for record in records))
    assert read_records(str(path), Format(usual=frozenset({"text", "label", "sentence"}))).header is expected


def test_a_header_can_be_said(write):
    path = write("a.csv", "one,two\na,x\nb,two\nc,x\nlong,two\n")
    assert read(path, text=0, label=1)[0] == ("one", "two")  # "two" stands below it again: a label
    assert read(path, header=True, text=0, label=1)[0] == ("a", "x")
    assert read(path, text="one", label="two")[0] == ("a", "x")  # a column with a name has a header


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators(write, separator):
    path = write("a.csv", f"text{separator}label\nsome text{separator}1\n")
    assert read_records(str(path), Format()).columns == ["text", "label"]
    assert read_records(str(write("b.csv", "text;label\na, b;1\n")), Format()).columns == ["text", "label"]
    assert read_records(str(write("c.csv", "no separator at all\nx\n")), Format()).separator == ","


def test_columns_by_name_and_number(write):
    path = write("a.csv", "title,body,mood,score\nT,a long body,glad,1\nU,a long text,sad,2\nV,b,glad,1\nW,c,sad,2\n")
    assert read(path, text="title", label="score")[0] == ("T", "1")
    assert read(path, text=0, label=2)[0] == ("T", "glad")


# parts


def test_a_folder_of_parts(write, tmp_path):
    for name, n in (("train", 4), ("DEV", 2), ("test", 3)):
        write(f"{name}.tsv", "".join(f"{name} text {i}\t{i % 2}\n" for i in range(n)))
    write("notes.md", "not a table")
    rows = source(tmp_path).rows()
    assert [row.part for row in rows] == ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    assert rows[4].where == f"{tmp_path}/DEV.tsv, row 1"


def test_a_header_of_train_is_that_of_all_parts(write, tmp_path):
    write("train.csv", "text,label\na,1\nb,0\nc,1\nd,0\n")
    write("test.csv", "label,text\n1,x\n0,y\n")
    assert [(row.text, row.label) for row in source(tmp_path).rows() if row.part == "test"] == [("x", "1"), ("y", "0")]


def test_a_single_file_in_a_folder(write, tmp_path):
    write("reviews.csv", "text,label\na,1\nb,0\nc,1\nd,0\n")
    assert [row.part for row in source(tmp_path).rows()] == [None] * 4


def test_a_split_column(write):
    path = write("a.csv", "text,label,set\na,1,train\nb,0,Training\nc,1,dev\nd,0,TEST\n")
    rows = source(path, split_column="set").rows()
    assert [row.part for row in rows] == ["train", "train", "val", "test"]
    assert source(path).rows()[0].label == "1"  # a column of parts is no label


def test_groups(write):
    path = write("a.csv", "text,label,author\na,1,x\nb,0,y\nc,1,x\nd,0,y\n")
    assert [row.group for row in source(path, group="author").rows()] == ["x", "y", "x", "y"]


# mistakes: one line each, with the file and what to do

GOOD = "text,label\na,1\nb,0\nc,1\nd,0\n"


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.csv", "", {}, r"a.csv: the file is empty; it needs a line of column names"),
        ("a.csv", "text,label\n", {}, r"a.csv: there are column names but no rows; .*data.header=false"),
        ("a.csv", b"\x89PNG\0\0\0", {}, r"a.csv: is binary, not text; use CSV, JSON Lines or Parquet"),
        ("a.csv", b"text,label\nna\xefve,1\n", {}, r"a.csv: is not utf-8 \(line 2, byte 0xef\); .*data.encoding=cp1252"),
        ("a.csv", GOOD, {"label": "lable"}, r"data.label names a column 'lable' .*; did you mean 'label'\? the"),
        ("a.csv", GOOD, {"text": 7}, r"a.csv: data.text names a column '7' that is not there; the columns are text, label"),
        ("a.csv", GOOD, {"text": "label", "label": "label"}, r"a.csv: one column cannot be two things.*change data.text"),
        ("a.csv", "text,label,text\na,1,b\n", {}, r"a.csv: several columns are called 'text'; give each a name"),
        ("a.csv", "text,label\na,1\nb,\nc, \nd,0\n", {}, r"a.csv: no label \(column label\) in row 2, 3; fill"),
        ("a.csv", "text,label\na,1\n,0\nc,0\n", {}, r"a.csv: no text \(column text\) in row 2; fill it or remove"),
        ("a.csv", "text,label\na,1\nb,c,0\nd,0\n", {}, r"a.csv: line 3: 3 values, but there are 2 columns .*needs quotes"),
        ("a.csv", "text,label\na,1\nb\nc\n", {}, r"a.csv: line 3 and 1 more lines: 1 values, but there are 2 columns"),
        ("a.csv", 'text,label\n"a,1\nb,0\n', {}, r"a.csv: line \d+ is not CSV \(unexpected end of data\); a quote inside"),
        ("a.csv", "text\na\nb\n", {}, r"a.csv has one column \(separator ','\).*say data.separator"),
        ("a.csv", GOOD, {"header": "maybe"}, r"data.header must be auto, true or false, not 'maybe'"),
        ("a.csv", GOOD, {"encoding": "utf9"}, r"data.encoding=utf9 is unknown; utf-8, latin-1"),
        ("a.csv", "text,label,s\na,1,train\nb,0,later\n", {"split_column": "s"}, r"split_column has 'later' in row 2"),
        ("a.csv", "text,label,s\na,1,dev\nb,0,test\n", {"split_column": "s"}, r"split_column never says train, only"),
        ("a.csv", "a,b,l\nsome long,some text,1\nsome more,some words,0\n", {}, r"which column is the text, a or b\? say"),
        ("a.csv", "t,m,n\nlong text,1,x\nmore text,2,y\n", {}, r"which column is the label, m or n\? say data.label=…"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, r"a.jsonl: line 2 is broken JSON .*; correct it"),
        ("a.jsonl", '{"text": "a", "label": 1}\n["b", 2]\n', {}, r"a.jsonl: line 2 must be an object such as"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}, r"a.jsonl: no label \(column label\) in row 2"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n{"text": "b"}\n', {}, r"no label .* in row 1, 2;"),
    ],
)  # fmt: skip
def test_bad_files(write, name, content, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        source(write(name, content), **settings).rows()
    assert "\n" not in str(caught.value)


def test_many_empty_labels_are_counted(write):
    path = write("a.csv", "text,label\n" + "a,\n" * 9)
    with pytest.raises(ValueError, match=r"in row 1, 2, 3, 4 and 5 more; fill it"):
        source(path).rows()


def test_paths_that_are_not_there(tmp_path, write):
    with pytest.raises(ValueError, match=r"data.path is missing"):
        source(None).rows()
    write("reviews.csv", GOOD)
    with pytest.raises(FileNotFoundError, match=r"review.csv does not exist; did you mean .*reviews.csv\?"):
        source(tmp_path / "review.csv").rows()
    with pytest.raises(FileNotFoundError, match=r"x.tsv does not exist; data.path is relative to where you are"):
        source(tmp_path / "x.tsv").rows()


def test_folders_that_say_too_little_or_too_much(tmp_path, write):
    with pytest.raises(ValueError, match=r"has no train.csv, .* \(no such files at all\); name the"):
        source(tmp_path).rows()
    write("a.csv", GOOD)
    write("b.csv", GOOD)
    with pytest.raises(ValueError, match=r"has no train.csv.* \(a.csv, b.csv\); name the training file so"):
        source(tmp_path).rows()
    write("train.csv", GOOD)
    with pytest.raises(ValueError, match=r"has a file for each part; leave out data.split_column=part"):
        write("test.csv", GOOD)
        source(tmp_path, split_column="part").rows()
    write("train.tsv", GOOD)
    with pytest.raises(ValueError, match=r"has train.csv and train.tsv; keep one of them"):
        source(tmp_path).rows()


def test_no_permission(write, tmp_path, monkeypatch):
    path = write("a.csv", GOOD)

    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read the folder .*; ask its owner"):
        source(tmp_path).rows()
    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read .*a.csv; ask its owner, or allow it: chmod"):
        source(path).rows()


def test_files_as_they_are_published(write, tmp_path, capsys):
    spam = "".join(f"{'ham' if i % 3 else 'spam'}\tmessage number {i}, says I\n" for i in range(30))
    write("SMSSpamCollection", spam)
    assert {row.label for row in source(tmp_path / "SMSSpamCollection").rows()} == {"ham", "spam"}
    wide = "v1,v2,,,\n" + "".join(f"{'ham' if i % 3 else 'spam'},caf\xe9 number {i},,,\n" for i in range(30))
    (tmp_path / "spam.csv").write_bytes(wide.encode("cp1252"))
    rows = source(tmp_path / "spam.csv", encoding="auto").rows()
    assert len(rows) == 30 and rows[0].text == "café number 0"
    out = capsys.readouterr().out
    assert "3 columns without a name are empty" in out and "is not utf-8 (line 2) and read as cp1252" in out
    write("c.csv", "sep=;\n" + GOOD.replace(",", ";"))
    write("d.csv", "# from the archive\n" + GOOD)
    write("e.csv", GOOD)
    assert [len(source(tmp_path / f"{name}.csv").rows()) for name in "cde"] == [
        len(source(tmp_path / "e.csv").rows())
    ] * 3


def test_a_folder_of_parts_without_usual_endings(write, tmp_path):
    for part, n in (("train", 8), ("dev", 4), ("test", 4)):
        write(f"{part}.txt", "".join(f"text {part} {i}\t{i % 2}\n" for i in range(n)))
    rows = source(tmp_path).rows()
    assert [sum(row.part == part for row in rows) for part in ("train", "val", "test")] == [8, 4, 4]


def test_parquet_holds_labelled_texts_too(tmp_path):
    import pandas as pd

    texts = pd.DataFrame({"text": [f"a text {i}" for i in range(10)], "label": ["a", "b"] * 5})
    texts.to_parquet(tmp_path / "t.parquet")
    assert [row.text for row in source(tmp_path / "t.parquet").rows()] == texts["text"].tolist()


def test_empty_texts_can_be_left_out(write, tmp_path, capsys):
    write("a.csv", f"{GOOD},y\n")
    with pytest.raises(ValueError, match=r"data\.drop_empty=true"):
        source(tmp_path / "a.csv").rows()
    n = len(source(tmp_path / "a.csv", drop_empty=True).rows())
    assert n == len(GOOD.splitlines()) - 1 and "1 rows with an empty text" in capsys.readouterr().out


def test_labels_that_are_equal_numbers_are_said(write, tmp_path, capsys):
    write("a.csv", "text,label\n" + "".join(f"text {i},{('01', '1', '2')[i % 3]}\n" for i in range(12)))
    assert {row.label for row in source(tmp_path / "a.csv").rows()} == {"1", "2"}
    assert "the labels 01, 1 are equal numbers and count as 1" in capsys.readouterr().out


def test_labelled_texts_and_their_twins_in_other_formats(tmp_path):
    import pandas as pd

    own = pd.DataFrame(
        {"text": [f" a {'good' if i % 2 else 'bad'} text, {i} " for i in range(30)], "label": [1.0, 2] * 15}
    )
    own.to_csv(tmp_path / "t.csv", index=False)
    own.to_parquet(tmp_path / "t.parquet")
    own.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    first, *others = (read(tmp_path / f"t.{name}") for name in ("csv", "parquet", "jsonl"))
    assert first[0] == (" a bad text, 0 ", "1") and all(other == first for other in others)
