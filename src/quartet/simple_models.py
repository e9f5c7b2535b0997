"""Models that a network has to beat: linear ones, gradient boosting, n-grams of bytes and a compressor. Imports no torch.

Letters: N samples, F features, C classes, M bytes of a text.
"""

from __future__ import annotations

import lzma
import math
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

import numpy as np

Parts = dict[str, Any]  # part (train, val, test) -> features (N, F), or targets (N,): class numbers, or numbers

PENALTIES = [10.0**k for k in range(4, -5, -1)]  # from strong to weak, as wide as LogisticRegressionCV's default grid
MAX_ROUNDS, PATIENCE = 300, 20  # rounds of boosting at the default rate of 0.1; half a million rows took 167
MOST_VALUES = 40_000_000  # features times rows that a model learns from: 10 to 30 s
LEAST_PROBABILITY = 1e-7  # about the resolution of float32: a wrong answer that is given as certain costs 16 nats
# a word, one ideograph or kana (those scripts have no spaces), or one sign
WORD = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+|[^\w\s]"
RARE = 1000  # texts from which on a word must be in two of them

MAX_ORDER = 8  # bytes of an n-gram: what an integer of 64 bits holds
END = 0xFF  # stands after each document; no text in UTF-8 has this byte
LEARN_BYTES = 2**24  # of running text that n-grams and xz learn from: a minute on 2 cores
XZ_DICTIONARY = 2**26  # bytes that preset 9 looks back
CHUNK = 2**18  # bytes that xz is given at a time: a quarter of a second


class Fitted(NamedTuple):
    """What a model says about the parts other than train, and what of it was chosen on the validation part.

    `outputs`: part -> probabilities (N, C), or predictions (N,).
    """

    outputs: dict[str, np.ndarray]
    choice: str = ""


# classes and numbers


def constant(y: Parts, n_classes: int) -> Fitted:
    """The shares of the classes in the training part, whose argmax is the majority class; or the mean."""
    value = np.bincount(y["train"], minlength=n_classes) / len(y["train"]) if n_classes else y["train"].mean()
    return Fitted({part: np.broadcast_to(value, (len(y[part]), *np.shape(value))) for part in y if part != "train"})


def linear(x: Parts, y: Parts, n_classes: int) -> Fitted:
    """Logistic regression, or ridge regression if there are no classes, from a strong penalty to a weak one.

    The penalty before the one at which the validation loss stops falling is kept.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    # each fit starts from the one before: the whole path costs little more than its last fit
    model: Any = LogisticRegression(warm_start=True, tol=1e-5) if n_classes else Ridge()
    best, best_loss = constant(y, n_classes), math.inf
    with _one_thread():
        for penalty in PENALTIES:
            model.set_params(**({"C": 1 / penalty} if n_classes else {"alpha": penalty})).fit(x["train"], y["train"])
            predict = model.predict_proba if n_classes else model.predict
            outputs = {part: _with_all_classes(model, predict(x[part]), n_classes) for part in x if part != "train"}
            loss = _loss(outputs["val"], y["val"])
            if not loss < best_loss:
                break
            best, best_loss = Fitted(outputs, f"C = {1 / penalty:g}" if n_classes else f"alpha = {penalty:g}"), loss
    return best


def boosted(x: Parts, y: Parts, n_classes: int, *, n_numeric: int, seed: int) -> Fitted:
    """Gradient boosting over binned features; the columns from `n_numeric` on hold categories by number.

    The number of rounds is the one with the least validation loss.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    # 1. as many rows as a round takes trees for, which is one for each of several classes
    n, width = x["train"].shape
    most = MOST_VALUES // (width * (n_classes if n_classes > 2 else 1))
    rows = np.random.default_rng(seed).permutation(n)[:most] if most < n else slice(None)
    x, y = {**x, "train": x["train"][rows]}, {**y, "train": y["train"][rows]}

    # 2. boost until the validation loss has not fallen for a while
    few = [j for j in range(n_numeric, width) if x["train"][:, j].max() < 255]  # what its bins can hold, else numbers
    make: Any = HistGradientBoostingClassifier if n_classes else HistGradientBoostingRegressor
    model = make(
        max_iter=MAX_ROUNDS,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        categorical_features=few or None,
        random_state=seed,  # draws the rows from which bins are made, above 200,000
    )
    with _one_thread():
        model.fit(x["train"], y["train"], X_val=x["val"], y_val=y["val"])

        # 3. the ensemble as it was after the best round; the first score is that of no round at all
        rounds = max(1, int(np.argmax(model.validation_score_)))
        outputs = {}
        for part in x.keys() - {"train"}:
            stages = model.staged_predict_proba(x[part]) if n_classes else model.staged_predict(x[part])
            outputs[part] = _with_all_classes(model, next(islice(stages, rounds - 1, None)), n_classes)
    return Fitted(outputs, f"{rounds} rounds{f', {most:,} rows' if most < n else ''}")


def word_features(texts: dict[str, list[str]]) -> Parts:
    """tf-idf of words and pairs of words, (N, F) sparse; words and their frequencies are those of the training part."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = 2 if len(texts["train"]) >= RARE else 1
    settings: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float32}
    words = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), min_df=least, **settings)
    words.fit(texts["train"])
    return {part: words.transform(rows) for part, rows in texts.items()}


def one_hot(x: Parts, n_numeric: int, cardinalities: Sequence[int]) -> Parts:
    """Numeric columns standardised as in the training part, and a column of 0 and 1 for each category of the others."""
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    categories: Any = [np.arange(n) for n in cardinalities]
    columns = list(range(n_numeric + len(cardinalities)))
    encoder = ColumnTransformer([
        ("numbers", StandardScaler(), columns[:n_numeric]),
        ("categories", OneHotEncoder(categories=categories), columns[n_numeric:]),
    ])  # fmt: skip
    encoder.fit(x["train"])
    return {part: encoder.transform(values) for part, values in x.items()}


def _with_all_classes(model: Any, output: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities (N, C) of a model that may not have seen every class; predictions stay as they are."""
    if not n_classes or output.shape[1] == n_classes:
        return output
    whole = np.zeros((len(output), n_classes))
    whole[:, model.classes_] = output
    return whole


def _loss(output: np.ndarray, target: np.ndarray) -> float:
    """Cross-entropy of probabilities, in nats, or the mean squared error."""
    if output.ndim == 1:
        return float(np.square(output - target).mean())
    return float(-np.log(output[np.arange(len(target)), target].clip(LEAST_PROBABILITY)).mean())


@contextmanager
def _one_thread() -> Iterator[None]:
    """For a fit: beside other programs a second thread took boosting of half a million rows from 7 s to 160 s.

    The sums, too, are the same on every machine then. A fit that ends at its last iteration is a model like any other.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


# running text


class Chunked(Protocol):
    """What is asked of a document; its length is in characters."""

    def __len__(self) -> int: ...
    def chunks(self) -> Iterable[str]: ...


def byte_stream(documents: Sequence[Chunked], *, every: int = 1) -> np.ndarray:
    """The bytes (M,) of each document and an END; of a text too large only `every` n-th piece of 64,000 characters."""
    ends = ([*((piece, b"") for piece in document.chunks()), ("", bytes([END]))] for document in documents)
    pieces = islice(chain.from_iterable(ends), 0, None, every)
    return np.frombuffer(b"".join(piece.encode("utf-8", "replace") + end for piece, end in pieces), np.uint8)


def kneser_ney(train: np.ndarray, streams: Sequence[np.ndarray], max_order: int) -> Iterator[list[np.ndarray]]:
    """For each order from 1 on: the probability of every byte of each stream, (M,), given the bytes before it.

    Interpolated Kneser-Ney with three discounts (Chen & Goodman 1999): an n-gram counts as often as it occurs if it is
    of the highest order, else as often as there are bytes to continue it to the left. A stream begins after an END.
    """
    lower = [np.full(len(stream), 1 / 256) for stream in streams]  # of the order below: at first, all bytes alike
    grams = np.unique(_grams(train, 1), return_counts=True)
    for order in range(1, max_order + 1):
        table = _Discounted(*grams)
        yield [table.interpolated(_grams(s, order), below) for s, below in zip(streams, lower, strict=True)]
        if order < max_order:
            grams = np.unique(_grams(train, order + 1), return_counts=True)
            without_first = grams[0] & np.uint64((1 << 8 * order) - 1)  # of their bytes
            table = _Discounted(*np.unique(without_first, return_counts=True))
            lower = [table.interpolated(_grams(s, order), below) for s, below in zip(streams, lower, strict=True)]


def _grams(stream: np.ndarray, order: int) -> np.ndarray:
    """The last `order` bytes up to each place of a stream, (M,), as integers whose lowest byte is the last one."""
    before = np.concatenate([np.full(order - 1, END, np.uint8), stream]).astype(np.uint64)
    grams = np.zeros(len(stream), np.uint64)
    for back in range(order):
        grams |= before[order - 1 - back : len(before) - back] << np.uint64(8 * back)
    return grams


class _Discounted:
    """Counts of n-grams of one order, of which something is set aside for those that were not seen."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray):
        # 1. how much is taken from n-grams that count 1, 2, and 3 or more
        n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].tolist()
        taken = np.array([0.0, 0.75, 0.75, 0.75])  # where a text is too small, or too regular, to estimate it
        if n1 and n2 and n3 and n4:
            share = n1 / (n1 + 2 * n2)
            estimated = [i - (i + 1) * share * b / a for i, (a, b) in enumerate([(n1, n2), (n2, n3), (n3, n4)], 1)]
            taken[1:] = np.clip(estimated, [0.1, 0.1, 0.1], [0.9, 1.9, 2.9])
        discounts = taken[np.minimum(counts, 3)]
        # 2. sums over the n-grams that differ in their last byte only, which stand together
        contexts = grams >> np.uint64(8)
        starts = np.flatnonzero(np.concatenate([[True], contexts[1:] != contexts[:-1]]))
        self.grams, self.rest = grams, counts - discounts
        self.contexts, self.totals = contexts[starts], np.add.reduceat(counts, starts)
        self.free = np.add.reduceat(discounts, starts) / self.totals

    def interpolated(self, grams: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Probabilities of the last bytes of `grams` (M,); `below` are those of the order below."""
        place, seen = _find(self.grams, grams)
        context, known = _find(self.contexts, grams >> np.uint64(8))
        own = np.where(seen, self.rest[place] / self.totals[context], 0.0)
        return own + np.where(known, self.free[context], 1.0) * below


def _find(among: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted value stands in an ascending array, and whether it does."""
    place = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    return place, among[place] == wanted


def bits_per_byte(bits: float, stream: np.ndarray) -> float:
    """Ends of documents have to be told, and are no bytes of the text: as in the language-model task."""
    return bits / int((stream != END).sum())


def xz_bits(train: np.ndarray, streams: Sequence[np.ndarray]) -> list[int]:
    """By how many bits `train` followed by a stream is longer than `train` alone, compressed with xz's preset 9e."""
    stop = threading.Event()

    def size(content: bytes) -> int:
        # a dictionary that reaches back further than the text takes memory only: 11 bytes for each of its bytes
        reach = min(XZ_DICTIONARY, max(4096, 1 << (len(content) - 1).bit_length()))
        method = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": reach}
        packer, n = lzma.LZMACompressor(filters=[method]), 0
        for start in range(0, len(content), CHUNK):
            if stop.is_set():  # Ctrl-C: nobody waits for the rest
                return 0
            n += len(packer.compress(content[start : start + CHUNK]))
        return n + len(packer.flush())

    contents = [train.tobytes(), *(train.tobytes() + stream.tobytes() for stream in streams)]
    with ThreadPoolExecutor(len(contents)) as pool:
        try:
            alone, *together = pool.map(size, contents)
        finally:
            stop.set()
    return [8 * (n - alone) for n in together]
