"""What a column of a table holds: its kind, found in training rows or given by the user, and how its text is read.

Every cell is text first, as CSV has it; other sources (Parquet, rows from a program) are turned into the same text, so
that training and inference read alike. `find_column` decides once, on the training rows; `read_column` follows.

The rules, in this order, on the values that are known (missing ones never change a kind):

1. one value only: ignored, a constant says nothing
2. all are numbers: numeric, however few they are; but codes (leading zeros, or whole numbers in a column called id)
   are text, and a row counter (rises by row, without large gaps) is ignored. If nine in ten are numbers and the rest
   is not, the rest is a mistake or a word for "missing": an error
3. true and false, yes and no, on and off, t and f, y and n: boolean
4. all are dates of one format: date, read as a day count and places in the year, the week and the day
5. text: categorical, but ignored if more than half of the values differ (names, identifiers, free text)

Letters: M rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from quartet.data.records import pc
from quartet.data.splits import listed

Text = Any  # (M,) pyarrow strings, null where a value is missing
Where = Callable[[Sequence[int]], str]  # places of rows, in words

# what pandas reads as missing, and the question mark of the UCI tables; in a column of names they are names
MISSING = (
    *("", "?", "NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "null", "NULL", "None"),
    *("nan", "NaN", "-nan", "-NaN", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
KINDS = ("numeric", "categorical", "boolean", "date", "ignore")
TRUE, FALSE = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")
DATES = ("ISO8601", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y")
TIMES = ("", " %H:%M", " %H:%M:%S")
DATE_FORMATS = tuple(date + time for date in DATES for time in (TIMES if "%" in date else TIMES[:1]))
ID_NAME = re.compile(r"(?i:(^|[\W_])(id|uuid|guid)$|^(index|key|unnamed: \d+)$)|[a-z]I[dD]$")
MOSTLY_ONE_KIND = 0.9  # numbers or dates, of the values: the rest is a mistake
MOSTLY_DISTINCT = 0.5  # of the values: each says nothing about the others
MIN_COUNTER = 10  # rows; fewer whole numbers may rise by chance


@dataclass(frozen=True)
class Column:
    """A column's name and kind; `why` it is ignored, or how it is read: the `format` of dates and their `features`."""

    name: str
    kind: str
    why: str = ""
    format: str = ""
    features: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value}


def option(key: str, *values: Any) -> str:
    """A list as a person types it: data.missing=[a,b], with quotes if the shell or Hydra needs them."""
    plain = all(re.fullmatch(r"[\w.-]+", str(value), re.ASCII) for value in values)
    return f"{key}=[{','.join(map(str, values))}]" if plain else f'"{key}={list(map(str, values))}"'


# text


def category(value: Any) -> str | None:
    """The name of a category: 1, 1.0 and "1" are the same one; None if it is missing (None, NaN, "")."""
    if value is None or value == "" or value != value:
        return None
    is_whole = isinstance(value, (float, np.floating)) and math.isfinite(value) and value == int(value)
    return str(int(value)) if is_whole else str(value)


def as_text(values: Any, missing: Iterable[str] = ()) -> Text:
    """Values of any plain type (M,) as text without spaces around it; null if empty or one of `missing`."""
    try:
        array = pa.array(values, from_pandas=True) if not isinstance(values, pa.ChunkedArray) else values
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several types
        array = pa.array([category(value) for value in values], pa.string())
    return without(pc.utf8_trim_whitespace(array.cast(pa.string())), ["", *missing])


def without(text: Text, words: Iterable[str] = MISSING) -> Text:
    """Null for these words: by default those that mean "no value" among numbers, dates and booleans."""
    found = pc.is_in(text, pa.array(list(words), pa.string()))
    return pc.if_else(found, pa.scalar(None, pa.string()), text) if pc.any(found).as_py() else text


def labels(text: Text) -> np.ndarray:
    """Names of categories (M,), None if missing: 1.0 is 1, as it is in a column of whole numbers without gaps."""
    # each distinct name is made once
    encoded = (text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text).dictionary_encode()
    names = pc.replace_substring_regex(encoded.dictionary, r"^(-?(?:0|[1-9][0-9]*))\.0+$", r"\1").to_pylist()
    return np.array([*names, None], dtype=object)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


# numbers and dates: values (M,), NaN if there is none, and which rows (M,) hold something else


def read_numbers(text: Text, decimal: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers with thousands in groups of three: 1,234.5 (decimal ".") or 1.234,5 (decimal ",")."""
    if decimal == ".":
        try:  # a thousand times faster, and stricter than the pattern
            return text.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(float), np.zeros(len(text), dtype=bool)
        except pa.ArrowInvalid:
            pass
    group = f"[{',' if decimal == '.' else '.'}'’ \u00a0\u202f]"
    whole = rf"(\d+|[1-9]\d{{0,2}}({group}\d{{3}})+)"  # 0,250 has no thousands
    digits = rf"({whole}(\{decimal}\d*)?|\{decimal}\d+)(e[+-]?\d+)?"
    # what matches loses its thousands and gets a decimal point
    is_number = pc.match_substring_regex(text, rf"^(?i:[+-]?({digits}|inf(inity)?))$")
    plain = pc.replace_substring_regex(text, group, "")
    plain = plain if decimal == "." else pc.replace_substring(plain, ",", ".")
    numbers = pc.if_else(is_number, plain, None).to_numpy(zero_copy_only=False).astype(float)
    return numbers, np.isnan(numbers) & np.asarray(text.is_valid())


def find_decimal(columns: Iterable[Text], separator: str = ",") -> tuple[str, str | None]:
    """A comma if it makes more columns numbers than a point does, as in 1.234,5; and a value that fits both, if all do.

    Such a tie goes to the comma if semicolons separate the columns: programs that write a decimal comma write those.
    """
    with_comma = [without(text) for text in columns if pc.any(pc.match_substring(text, ",")).as_py()]
    if not with_comma:
        return ".", None
    fits = {
        decimal: [not read_numbers(text, decimal)[1].any() for text in with_comma]
        for decimal in ((",", ".") if separator == ";" else (".", ","))
    }
    tied = [text for text, comma, point in zip(with_comma, fits[","], fits["."], strict=True) if comma and point]
    example = None
    if tied and sum(fits["."]) == sum(fits[","]):
        example = tied[0].filter(pc.fill_null(pc.match_substring(tied[0], ","), False))[0].as_py()
    return max(fits, key=lambda decimal: sum(fits[decimal])), example


def read_dates(text: Text, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970, UTC."""
    # each distinct value is parsed once
    encoded = (text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text).dictionary_encode()
    dates = pd.to_datetime(pd.Series(encoded.dictionary.to_pylist(), dtype=str), format=form, errors="coerce", utc=True)
    moments = dates.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    seconds = (moments - np.datetime64(0, "us")) / np.timedelta64(1, "s")
    numbers = np.array([*seconds, math.nan])[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return numbers, np.isnan(numbers) & np.asarray(text.is_valid())


def find_date_format(text: Text) -> str | None:
    """The first format that reads every known value, else the one that reads most: nine in ten of them at least.

    A few values are tried first, and only if most of them have digits.
    """
    known, best, most = text.drop_null(), None, MOSTLY_ONE_KIND
    few = pc.unique(known)[:20]
    if pc.mean(pc.match_substring_regex(few, "[0-9]").cast(pa.float64())).as_py() < 0.5:
        return None
    for form in DATE_FORMATS:
        if read_dates(few, form)[1].mean() > 0.5:
            continue
        share = 1 - read_dates(known, form)[1].mean()
        if share == 1:
            return form
        if share >= most:
            best, most = form, share
    return best


def other_order(form: str) -> str | None:
    """Day and month exchanged, if both are numbers."""
    if "%d" not in form or "%m" not in form:
        return None
    return form.replace("%d", "%@").replace("%m", "%d").replace("%@", "%m")


def date_features(seconds: np.ndarray) -> dict[str, np.ndarray]:
    """Days since 1970, and sine and cosine of the place in the year, the week (Monday first) and the day, (M,) each."""
    days = seconds / 86_400
    dates = np.floor(np.nan_to_num(days)).astype("datetime64[D]")
    day_of_year = (dates - dates.astype("datetime64[Y]")).astype(float)
    places = {"year": day_of_year / 365.25, "week": (np.floor(days) + 3) % 7 / 7, "day": days % 1}
    known = np.where(np.isnan(days), math.nan, 1.0)
    waves = {"sin": np.sin, "cos": np.cos}
    circles = {f"{p}_{w}": known * waves[w](2 * math.pi * x) for p, x in places.items() for w in waves}
    return {"days": days, **circles}


# kinds


def find_column(name: str, text: Text, decimal: str, date_format: str | None, kind: str | None = None) -> Column:
    """The kind of a column: the user's, else by the rules above.

    Raises ValueError for a few values that are not numbers, or not dates, and if no format reads the dates of a column
    that the user calls one.
    """
    if kind == "ignore":
        return Column(name, kind, "data.kinds.ignore says so")
    if kind in ("numeric", "categorical", "boolean"):
        return Column(name, kind)
    # values that are known; a word for "no value" is one too if nothing else tells the rows apart
    known = without(text).drop_null()
    if kind == "date":
        found = date_format or find_date_format(known)
        if not found:
            raise ValueError(
                f"column {name!r} has dates of no known form, such as {known[0].as_py()!r}; "
                "give it as in data.date_format=%d.%m.%Y"
            )
        return _date_column(name, known, found)
    if len(pc.unique(known)) < 2 and read_numbers(known, decimal)[1].all():  # "yes" or "None": names, both of them
        known = text.drop_null()
    # rule 1: constant
    distinct = len(pc.unique(known))
    if distinct == 1:
        return Column(name, "ignore", f"it is constant ({known[0].as_py()!r})")
    # rule 2: numbers, but not codes or a row counter
    numbers, strange = read_numbers(known, decimal)
    if not strange.any():
        whole = bool((numbers == np.floor(numbers)).all())
        padded = pc.any(pc.match_substring_regex(known, r"^0[0-9]+$")).as_py()  # 01234 is a code
        if not padded and not (whole and ID_NAME.search(name)):
            rises = len(numbers) >= MIN_COUNTER and whole and bool((np.diff(numbers) > 0).all())
            counts = rises and numbers[-1] - numbers[0] < 2 * len(numbers)  # fills at least half of its range
            return Column(name, "ignore", "it counts the rows") if counts else Column(name, "numeric")
    else:
        _refuse_stray_text(name, known, strange, "numbers")
        # rules 3 and 4: booleans, dates
        if pc.all(pc.is_in(pc.utf8_lower(known), pa.array([*TRUE, *FALSE]))).as_py():
            return Column(name, "boolean")
        given = date_format is not None and not read_dates(known, date_format)[1].any()
        if found := date_format if given else find_date_format(known):
            _refuse_stray_text(name, known, read_dates(known, found)[1], f"dates ({found})")
            return _date_column(name, known, found)
    # rule 5: text
    if distinct > MOSTLY_DISTINCT * len(known):
        return Column(name, "ignore", f"it is text or a code that differs in {distinct} of {len(known)} training rows")
    return Column(name, "categorical")


def _date_column(name: str, known: Text, form: str) -> Column:
    """Only what differs between the training rows becomes a feature: no place in the day if there are no times."""
    features = date_features(read_dates(known, form)[0])
    return Column(name, "date", format=form, features=[key for key, x in features.items() if np.ptp(x) > 1e-9])


def _refuse_stray_text(name: str, known: Text, strange: np.ndarray, kind: str) -> None:
    if 0 < strange.mean() <= 1 - MOSTLY_ONE_KIND + 1e-9:
        stray = pc.unique(known.filter(pa.array(strange))).to_pylist()
        raise ValueError(
            f"column {name!r} has {kind} in {len(known) - strange.sum()} of {len(known)} training rows, but also "
            f"{listed(map(repr, stray))}; {option('data.missing', *stray[:4])} if that means no value, "
            f"else {option('data.kinds.categorical', name)}"
        )


# reading by kind


def read_column(column: Column, text: Text, decimal: str, where: Where) -> dict[str, np.ndarray]:
    """A column as features (M,) by name: numbers, or names of categories as objects.

    Raises ValueError, naming row and remedy, for a value that is not of the column's kind; categories may be new.
    """

    def refuse(strange: np.ndarray, kind: str) -> None:
        if strange.any():
            first = int(strange.argmax())
            value = text[first].as_py()
            raise ValueError(
                f"column {column.name!r} must hold {kind}, but {where([first])} has {value!r}; "
                f"{option('data.missing', value)} if that means no value, "
                f"else {option('data.kinds.categorical', column.name)}"
            )

    if column.kind == "categorical":
        return {column.name: labels(text)}
    text = without(text)
    if column.kind == "boolean":
        yes, no = (pc.is_in(pc.utf8_lower(text), pa.array(words)) for words in (TRUE, FALSE))
        refuse(np.asarray(text.is_valid()) & ~np.asarray(pc.or_(yes, no)), "true or false")
        words = pc.if_else(yes, "true", pc.if_else(no, "false", pa.scalar(None, pa.string())))
        return {column.name: words.to_numpy(zero_copy_only=False)}
    if column.kind == "date":
        seconds, strange = read_dates(text, column.format)
        # day and month exchanged: the training rows happened to fit the wrong order
        other = other_order(column.format)
        if strange.any() and other and not read_dates(text, other)[1].any():
            first = int(strange.argmax())
            raise ValueError(
                f"column {column.name!r} has dates that fit {column.format} in the training rows, but "
                f"{where([first])} has {text[first].as_py()!r}; data.date_format={other} reads all of them"
            )
        refuse(strange, f"a date ({column.format})")
        features = date_features(seconds)
        return {f"{column.name}.{feature}": features[feature] for feature in column.features}
    numbers, strange = read_numbers(text, decimal)
    refuse(strange, "a number")
    if np.isinf(numbers).any():
        raise ValueError(
            f"column {column.name!r} is infinite in {where([int(np.isinf(numbers).argmax())])}; correct the value or "
            f"leave it empty, or leave out the column: {option('data.kinds.ignore', column.name)}"
        )
    return {column.name: numbers}
