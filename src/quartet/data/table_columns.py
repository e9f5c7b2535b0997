"""What a column of a table holds: its kind, found in training rows or given by the user, and how its text is read.

Every cell is text first, as CSV has it; other sources (Parquet, rows from a program) are turned into the same text, so
that training and inference read alike. `find_column` decides once, on the training rows; `read_column` follows.

The rules, in this order, on the values that are known (missing ones never change a kind):

1. one value only: ignored, a constant says nothing
2. all are numbers: numeric, however few they are; but codes (leading zeros, or whole numbers in a column called id)
   are text, and a row counter (rises by row, without large gaps) is ignored. Where nine in ten are numbers and the rest
   is not, the rest is a mistake or a word for "missing": an error
3. true and false, yes and no, on and off, t and f, y and n: boolean
4. all are dates of one format: date, read as a day count and places in the year, the week and the day
5. text: categorical, but ignored where more than half of the values differ (names, identifiers, free text)

Letters: M rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute

from quartet.data.tables import category

pc: Any = compute  # its functions are made at import, where no type checker sees them
Text = Any  # (M,) pyarrow strings, null where a value is missing

# what pandas takes for missing, and the question mark of the UCI tables; in a column of names they are names
MISSING = (
    *("", "?", "NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "null", "NULL", "None"),
    *("nan", "NaN", "-nan", "-NaN", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
KINDS = ("numeric", "categorical", "boolean", "date", "ignore")
TRUE, FALSE = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")
DATES = ("ISO8601", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y")
TIMES = ("", " %H:%M", " %H:%M:%S")
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
    """A list as a person types it: data.missing=[a,b], with quotes where the shell or Hydra needs them."""
    plain = all(re.fullmatch(r"[\w.-]+", str(value), re.ASCII) for value in values)
    return f"{key}=[{','.join(map(str, values))}]" if plain else f'"{key}={list(map(str, values))}"'


# text


def as_text(values: Any, missing: Iterable[str] = ()) -> Text:
    """Values of any plain type (M,) as text without spaces around it; null where empty or one of `missing`."""
    try:
        array = pa.array(values, from_pandas=True) if not isinstance(values, pa.ChunkedArray) else values
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several types
        array = pa.array([category(value) for value in values], pa.string())
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return without(text, ["", *missing])


def without(text: Text, words: Iterable[str] = MISSING) -> Text:
    """Null where one of these words stands: by default those that mean "no value" among numbers, dates and truths."""
    return pc.if_else(pc.is_in(text, pa.array(list(words), pa.string())), pa.scalar(None, pa.string()), text)


def labels(text: Text) -> np.ndarray:
    """Names of categories (M,), None where missing: 1.0 is 1, as it is where no value of the column is missing."""
    return pc.replace_substring_regex(text, r"^(-?(?:0|[1-9][0-9]*))\.0+$", r"\1").to_numpy(zero_copy_only=False)


def _distinct(text: Text) -> tuple[list[str], np.ndarray]:
    """The values (D,), and for each row the place of its own (M,), -1 where missing."""
    encoded = (text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)


# numbers


def read_numbers(text: Text, decimal: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (M,), NaN where there is none; and in which rows (M,) there is something else than a number."""
    if decimal == ".":
        try:  # a thousand times faster, and stricter than `_number`
            return text.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(float), np.zeros(len(text), dtype=bool)
        except pa.ArrowInvalid:
            pass
    values, places = _distinct(text)
    pattern = _number_pattern(decimal)
    numbers = np.array([*(_number(value, pattern, decimal) for value in values), math.nan])[places]
    return numbers, np.isnan(numbers) & (places >= 0)


def _number_pattern(decimal: str) -> re.Pattern:
    thousands = rf"[{',' if decimal == '.' else '.'}'’ \u00a0\u202f]"
    whole = rf"(\d+|[1-9]\d{{0,2}}({thousands}\d{{3}})+)"  # 0,250 has no thousands
    digits = rf"({whole}(\{decimal}\d*)?|\{decimal}\d+)(e[+-]?\d+)?"
    return re.compile(rf"[+-]?({digits}|inf(inity)?)", re.IGNORECASE | re.ASCII)


def _number(text: str, pattern: re.Pattern, decimal: str) -> float:
    if not pattern.fullmatch(text):
        return math.nan
    return float(text if "inf" in text.lower() else re.sub(r"[^\d.eE+-]", "", _with_point(text, decimal)))


def _with_point(text: str, decimal: str) -> str:
    return text.replace(",", "") if decimal == "." else text.replace(".", "").replace(",", ".")


def find_decimal(columns: Iterable[Text], separator: str = ",") -> tuple[str, str | None]:
    """A comma where it makes more columns numbers than a point does, as in 1.234,5; and a value that fits both, if all do.

    Such a tie goes to the comma where semicolons separate the columns: programs that write a decimal comma write those.
    """
    with_comma = [without(text) for text in columns if pc.any(pc.match_substring(text, ",")).as_py()]
    if not with_comma:
        return ".", None
    counts = {
        decimal: sum(not read_numbers(text, decimal)[1].any() for text in with_comma)
        for decimal in ((",", ".") if separator == ";" else (".", ","))
    }
    tied = [text for text in with_comma if not any(read_numbers(text, decimal)[1].any() for decimal in counts)]
    example = None
    if tied and counts["."] == counts[","]:
        example = tied[0].filter(pc.fill_null(pc.match_substring(tied[0], ","), False))[0].as_py()
    return max(counts, key=lambda decimal: counts[decimal]), example


# dates


def read_dates(text: Text, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since 1970 (M,), UTC, NaN where there is no date; and in which rows (M,) there is something else."""
    values, places = _distinct(text)
    dates = pd.to_datetime(pd.Series(values, dtype=str), format=form, errors="coerce", utc=True)
    moments = dates.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    seconds = (moments - np.datetime64(0, "us")) / np.timedelta64(1, "s")
    numbers = np.array([*seconds, math.nan])[places]
    return numbers, np.isnan(numbers) & (places >= 0)


def find_date_format(text: Text) -> str | None:
    """The first format that reads every known value, else the one that reads most: nine in ten of them at least.

    A few values are tried first, and only where most of them have digits.
    """
    known, best, most = text.drop_null(), None, MOSTLY_ONE_KIND
    few = pc.unique(known)[:20]
    if pc.mean(pc.match_substring_regex(few, "[0-9]").cast(pa.float64())).as_py() < 0.5:
        return None
    for form in date_formats():
        if read_dates(few, form)[1].mean() > 0.5:
            continue
        share = 1 - read_dates(known, form)[1].mean()
        if share == 1:
            return form
        if share >= most:
            best, most = form, share
    return best


def date_formats() -> Iterable[str]:
    return (date + time for date in DATES for time in (TIMES if "%" in date else TIMES[:1]))


def other_order(form: str) -> str | None:
    """Day and month exchanged, where both are numbers."""
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


def find_column(name: str, text: Text, decimal: str, date_format: str | None) -> Column:
    """The kind of a column by the rules above. Raises ValueError for a few values that are no numbers, or no dates."""
    known = without(text).drop_null()
    if len(pc.unique(known)) < 2 and read_numbers(known, decimal)[1].all():  # "yes" or "None": names, both of them
        known = text.drop_null()
    distinct = len(pc.unique(known))
    if distinct == 1:
        return Column(name, "ignore", f"it is constant ({known[0].as_py()!r})")
    numbers, strange = read_numbers(known, decimal)
    if not strange.any() and not _is_code(name, known, numbers):
        counts = _is_counter(numbers)
        return Column(name, "ignore", "it counts the rows") if counts else Column(name, "numeric")
    if strange.any():
        _refuse_stray_text(name, known, strange, "numbers")
        if pc.all(_is_boolean(known)).as_py():
            return Column(name, "boolean")
        if found := date_format if _reads(known, date_format) else find_date_format(known):
            _refuse_stray_text(name, known, read_dates(known, found)[1], f"dates ({found})")
            return date_column(name, known, found)
    if distinct > MOSTLY_DISTINCT * len(known):
        return Column(name, "ignore", f"it is text or a code that differs in {distinct} of {len(known)} training rows")
    return Column(name, "categorical")


def given_column(name: str, kind: str, text: Text, date_format: str | None) -> Column:
    """A column whose kind the user gave. Raises ValueError where no date format reads it."""
    if kind == "ignore":
        return Column(name, kind, "data.kinds.ignore says so")
    if kind != "date":
        return Column(name, kind)
    text = without(text)
    found = date_format or find_date_format(text)
    if not found:
        raise ValueError(
            f"column {name!r} has dates of no known form, such as {text.drop_null()[0].as_py()!r}; "
            "give it as in data.date_format=%d.%m.%Y"
        )
    return date_column(name, text, found)


def date_column(name: str, text: Text, form: str) -> Column:
    """Only what differs between the training rows becomes a feature: no place in the day where there are no times."""
    features = date_features(read_dates(without(text).drop_null(), form)[0])
    return Column(name, "date", format=form, features=[key for key, x in features.items() if np.ptp(x) > 1e-9])


def _reads(text: Text, form: str | None) -> bool:
    return form is not None and not read_dates(text, form)[1].any()


def _is_code(name: str, known: Text, numbers: np.ndarray) -> bool:
    padded = pc.any(pc.match_substring_regex(known, r"^0[0-9]+$")).as_py()
    return padded or bool(ID_NAME.search(name) and (numbers == np.floor(numbers)).all())


def _is_counter(numbers: np.ndarray) -> bool:
    """Whole numbers that rise from row to row and fill at least half of their range."""
    rises = len(numbers) >= MIN_COUNTER and (np.diff(numbers) > 0).all() and (numbers == np.floor(numbers)).all()
    return bool(rises and numbers[-1] - numbers[0] < 2 * len(numbers))


def _is_boolean(text: Text) -> Any:
    return pc.is_in(pc.utf8_lower(text), pa.array([*TRUE, *FALSE]))


def _refuse_stray_text(name: str, known: Text, strange: np.ndarray, kind: str) -> None:
    if 0 < strange.mean() <= 1 - MOSTLY_ONE_KIND + 1e-9:
        stray = pc.unique(known.filter(pa.array(strange))).to_pylist()
        raise ValueError(
            f"column {name!r} has {kind} in {len(known) - strange.sum()} of {len(known)} training rows, but also "
            f"{listed(map(repr, stray))}; {option('data.missing', *stray[:4])} if that means no value, "
            f"else {option('data.kinds.categorical', name)}"
        )


def listed(words: Iterable[str], most: int = 4) -> str:
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


# reading by kind


def read_column(column: Column, text: Text, decimal: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """A column as features (M,) by name: numbers, or names of categories as objects.

    `rows` (M,) are the numbers by which the user knows the rows. Raises ValueError, naming row and remedy, where a value
    is not of the column's kind; categories may be new.
    """
    if column.kind == "categorical":
        return {column.name: labels(text)}
    text = without(text)
    if column.kind == "boolean":
        return {column.name: _booleans(column, text, rows)}
    if column.kind == "date":
        seconds, strange = read_dates(text, column.format)
        other = other_order(column.format)
        if strange.any() and other and _reads(text, other):
            value = text[int(strange.argmax())].as_py()
            raise ValueError(
                f"column {column.name!r} has dates that fit {column.format} in the training rows, but row "
                f"{rows[int(strange.argmax())]} has {value!r}; data.date_format={other} reads all of them"
            )
        _refuse(column, text, strange, rows, f"a date ({column.format})")
        every = date_features(seconds)
        return {f"{column.name}.{feature}": every[feature] for feature in column.features}
    numbers, strange = read_numbers(text, decimal)
    _refuse(column, text, strange, rows, "a number")
    _refuse_infinity(column, numbers, rows)
    return {column.name: numbers}


def _booleans(column: Column, text: Text, rows: np.ndarray) -> np.ndarray:
    _refuse(column, text, ~_is_boolean(text).to_numpy(zero_copy_only=False) & text.is_valid(), rows, "true or false")
    yes = pc.is_in(pc.utf8_lower(text), pa.array(TRUE))
    return pc.if_else(text.is_valid(), pc.if_else(yes, "true", "false"), None).to_numpy(zero_copy_only=False)


def _refuse(column: Column, text: Text, strange: Any, rows: np.ndarray, kind: str) -> None:
    strange = np.asarray(strange)
    if strange.any():
        first = int(strange.argmax())
        value = text[first].as_py()
        raise ValueError(
            f"column {column.name!r} must hold {kind}, but row {rows[first]} has {value!r}; {option('data.missing', value)} "
            f"if that means no value, else {option('data.kinds.categorical', column.name)}"
        )


def _refuse_infinity(column: Column, numbers: np.ndarray, rows: np.ndarray) -> None:
    if np.isinf(numbers).any():
        raise ValueError(
            f"column {column.name!r} is infinite in row {rows[int(np.isinf(numbers).argmax())]}; correct the value or "
            f"leave it empty, or leave out the column: {option('data.kinds.ignore', column.name)}"
        )
