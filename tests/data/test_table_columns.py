"""Kinds of columns: found on what is known, overridable, read alike from text and from values."""

import math
from datetime import datetime

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quartet.data.table.columns import (
    Column,
    as_text,
    date_features,
    find_column,
    find_date_format,
    find_decimal,
    labels,
    option,
    read_column,
    read_dates,
    read_numbers,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**12), 10**12)


def find(values, name="x", decimal=".", date_format=None):
    return find_column(name, as_text(values), decimal, date_format)


def read(column, values, decimal="."):
    return read_column(column, as_text(values), decimal, lambda places: f"row {places[0] + 1}")


def is_counter(values):
    return len(values) >= 10 and (np.diff(np.array(values, dtype=float)) > 0).all()


# laws


@settings(max_examples=40, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=30))
def test_numbers_written_as_text_are_numeric_and_come_back(values):
    assume(len(set(values)) > 1 and not is_counter(values))
    text = [str(value) for value in values]
    assert find(text).kind == "numeric"
    assert read(Column("x", "numeric"), text)["x"].tolist() == [float(value) for value in values]


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        st.lists(NUMBERS.map(str), min_size=2),
        st.lists(st.sampled_from(["red", "green", "blue"]), min_size=2),
        st.lists(st.booleans().map(str), min_size=2),
        st.lists(st.dates().map(str), min_size=2),
        st.lists(st.text("abcdefgh ", min_size=4), min_size=2),
    ),
    st.data(),
)
def test_missing_values_never_change_the_kind(values, data):
    assume(any(value.strip() for value in values))
    kind = find(values).kind
    assume(kind != "ignore" or len(set(values)) > 1)  # beside the only name of a column, NA is another one
    gaps = [*values]
    for word in ("", "NA", "?", " nan "):
        gaps.insert(data.draw(st.integers(0, len(gaps))), word)
    assert find(gaps).kind == kind


@pytest.mark.parametrize("word", ["None", "NA", "null", "n/a", "?", "nan"])
def test_words_for_no_value_are_names_in_a_column_of_names(word):
    for values in (["Apnea", word, "Insomnia"] * 8, ["Pave", word] * 10):
        column = find(values)
        assert column.kind == "categorical" and read(column, [word, ""])[column.name].tolist() == [word, None]
    assert find(["yes", "no", word] * 5).kind == "boolean" and find(["1.5", "2", word] * 5).kind == "numeric"


@pytest.mark.parametrize("stray", ["unknown", "0000-00-00", "2024-02-31", "3/4/2024"])
def test_a_few_bad_dates_are_named(stray):
    values = [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(60)]
    values[7] = values[31] = stray
    with pytest.raises(
        ValueError, match=rf"has dates \(ISO8601\) in 58 of 60 training rows, but also {stray!r}; .*data.missing"
    ):
        find(values, "when")
    assert find_column("when", as_text(values, [stray]), ".", None).kind == "date"


def test_day_and_month_exchanged_name_the_format():
    column = find([f"{1 + i % 12:02}/{1 + i % 11:02}/2020" for i in range(30)], "when")
    with pytest.raises(ValueError, match=r"row 2 has '25/12/2020'; data.date_format=%d/%m/%Y reads all of them"):
        read(column, ["01/02/2020", "25/12/2020"])


@settings(max_examples=40, deadline=None)
@given(st.lists(NUMBERS | st.booleans() | st.none() | st.text("ab1 ,.", max_size=4), max_size=20))
def test_values_of_any_type_become_text_or_nothing(values):
    text = as_text(values)
    assert len(text) == len(values) and all(
        x is None or (isinstance(x, str) and x == x.strip()) for x in text.to_pylist()
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(0, 999), st.sampled_from([".", ","]))
def test_grouped_thousands_with_either_decimal(whole, thousandths, decimal):
    written = f"{whole:,}.{thousandths:03}"
    if decimal == ",":
        written = written.translate(str.maketrans(",.", ".,"))
    numbers, strange = read_numbers(as_text([written]), decimal)
    assert not strange.any() and numbers[0] == pytest.approx(float(f"{whole}.{thousandths:03}"))


@settings(max_examples=40, deadline=None)
@given(st.datetimes(min_value=datetime(1800, 1, 1), max_value=datetime(2200, 1, 1)))
def test_dates_have_bounded_features_that_tell_day_and_weekday(moment):
    features = date_features(read_dates(as_text([str(moment)]), "ISO8601")[0])
    assert features["days"][0] == pytest.approx((moment - datetime(1970, 1, 1)).total_seconds() / 86400)
    week = math.atan2(features["week_sin"][0], features["week_cos"][0]) / (2 * math.pi) % 1 * 7
    assert round(week) % 7 == moment.weekday()
    assert all(abs(x[0]) <= 1 for name, x in features.items() if name != "days")


# examples


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 1, 2], "numeric"),  # few values are a quantity unless the user says otherwise
        (["0", "1", "1"], "numeric"),
        (["1e3", "+2", ".5", "-1.5"], "numeric"),
        (["1,234", "12", "1,234,567.5"], "numeric"),
        (["1,23", "a", "1,23", "a"], "categorical"),
        (["yes", "no", "Yes", "NO"], "boolean"),
        (["t", "f", "t"], "boolean"),
        (["true", "false", None], "boolean"),
        ([True, False, None], "boolean"),
        (["2024-01-31", "2024-02-01"], "date"),
        (["31.01.2024 12:30", "01.02.2024 07:00"], "date"),
        (["01/31/2024", "02/01/2024"], "date"),
        (["31/01/2024", "01/02/2024"], "date"),
        (["Jan 31, 2024", "Feb 1, 2024"], "date"),
        (["red", "green", "red", "green"], "categorical"),
        (["01234", "04109", "01234", "04109"], "categorical"),  # a leading zero: a code
        ([7, 7, 7], "ignore"),
        (["same", None, "same"], "ignore"),
        (list(range(100, 120)), "ignore"),  # counts the rows
        ([f"text {i}" for i in range(20)], "ignore"),
        (["01234", "04109", "99999"], "ignore"),
    ],
)
def test_kinds(values, kind):
    assert find(values).kind == kind


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("id", [5, 3, 9, 1], "ignore"),
        ("PassengerId", [5, 3, 9, 1], "ignore"),
        ("Unnamed: 0", [5, 3, 9, 1], "ignore"),
        ("store_id", [5, 3, 5, 3], "categorical"),
        ("acid", [5, 3, 9, 1], "numeric"),
        ("width", [5, 3, 9, 1], "numeric"),
        ("user_id", [0.5, 0.25, 0.125], "numeric"),
    ],
)
def test_a_name_says_that_whole_numbers_are_codes(name, values, kind):
    assert find(values, name).kind == kind


def test_an_ignored_column_says_why():
    assert find([7, 7]).why == "it is constant ('7')"
    assert find(list(range(20))).why == "it counts the rows"
    assert find(["a", "b"]).why == "it is text or a code that differs in 2 of 2 training rows"


def test_a_few_words_among_numbers_are_an_error_with_both_remedies():
    values = [*map(str, np.random.default_rng(0).normal(size=97)), "unknown", "n. a.", "n. a."]
    with pytest.raises(
        ValueError, match=r"column 'age' has numbers in 97 of 100 training rows, but also 'unknown', 'n. a.'"
    ):
        find(values, "age")
    with pytest.raises(ValueError, match=r"data\.missing=\['unknown', 'n. a.'\].* data\.kinds\.categorical=\[age\]"):
        find(values, "age")
    assert find_column("age", as_text(values, ["unknown", "n. a."]), ".", None).kind == "numeric"


def test_the_decimal_is_the_one_that_makes_numbers():
    assert find_decimal([as_text(["1,5", "2,25"]), as_text(["a", "b"])]) == (",", None)
    assert find_decimal([as_text(["1.5", "2"]), as_text(["x, y", "z"])]) == (".", None)
    assert find_decimal([as_text(["1,234"])]) == (".", "1,234")  # both are possible
    assert find_decimal([as_text(["1,234", "NA"])], ";") == (",", "1,234")
    assert find_decimal([as_text(["0,250", "1,234"])]) == (",", None)  # no number begins with a group of zero
    assert find_decimal([as_text(["2.183", "1.234"])], ";") == (".", None)
    assert read(Column("x", "numeric"), ["1.234,5", "7", None], ",")["x"][:2].tolist() == [1234.5, 7]


def test_date_features_that_do_not_vary_are_left_out():
    column = find(["2024-01-01", "2024-01-08", "2024-01-15"], "day")  # Mondays, without a time
    assert column == Column("day", "date", format="ISO8601", features=["days", "year_sin", "year_cos"])
    assert list(read(column, ["2024-01-22"])) == ["day.days", "day.year_sin", "day.year_cos"]
    assert np.isnan(read(column, [""])["day.days"]).all() and np.isnan(read(column, [None])["day.year_sin"]).all()


def test_a_date_format_may_be_given():
    ambiguous = as_text(["01/02/2024", "03/04/2024"])
    assert find_date_format(ambiguous) == "%m/%d/%Y"
    assert find_column("x", ambiguous, ".", "%d/%m/%Y").format == "%d/%m/%Y"
    assert find_column("x", as_text(["20240131", "20240201"]), ".", "%Y%m%d", "date").features
    with pytest.raises(ValueError, match=r"column 'x' has dates of no known form, such as 'soon'; .*data\.date_format"):
        find_column("x", as_text(["soon"]), ".", None, "date")


def test_booleans_are_one_whatever_their_words():
    column = Column("b", "boolean")
    assert read(column, ["Yes", "n", "TRUE", "0", None])["b"].tolist() == ["true", "false", "true", "false", None]
    assert read(column, [True, False, None])["b"].tolist() == ["true", "false", None]


def test_a_category_is_the_same_with_and_without_a_point():
    assert labels(as_text(["1.0", "1", "01.0", "1.50", "-2.0", None])).tolist() == [
        "1",
        "1",
        "01.0",
        "1.50",
        "-2",
        None,
    ]
    assert (
        labels(as_text([1.0, 2.0])).tolist() == labels(as_text([1, 2])).tolist() == labels(as_text(["1", "2"])).tolist()
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            Column("a b", "numeric"),
            "much",
            r"column 'a b' must hold a number, but row 2 has 'much'; data.missing=\[much\]",
        ),
        (
            Column("x", "date", format="%d.%m.%Y"),
            "2024",
            r"column 'x' must hold a date \(%d.%m.%Y\), but row 2 has '2024'",
        ),
        (Column("x", "boolean"), "maybe", "column 'x' must hold true or false, but row 2 has 'maybe'"),
        (Column("x", "numeric"), "-inf", r"column 'x' is infinite in row 2; .*data.kinds.ignore=\[x\]"),
    ],
)
def test_what_is_not_of_the_column_s_kind_is_named(column, value, message):
    with pytest.raises(ValueError, match=message):
        read(column, [None, value])


def test_options_are_written_as_a_shell_takes_them():
    assert option("data.missing", "a", -9) == "data.missing=[a,-9]"
    assert option("data.kinds.ignore", "größe (cm)") == "\"data.kinds.ignore=['größe (cm)']\""
