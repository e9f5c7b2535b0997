"""The classical baseline of text classification: tf-idf of words and word pairs, logistic regression, the same split.

    python benchmarks/text_tfidf.py data=stdlib_topics
    python benchmarks/text_tfidf.py data=labelled_text data.path=reviews.tsv data.split_seed=1

Half a minute each; the keys are those of training.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from quartet import build

CONF = Path(__file__).resolve().parents[1] / "conf"


def read_parts(overrides: list[str]) -> dict[str, Any]:
    """The raw texts of train, val and test, as the data module splits them."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return build.build_data(hydra.compose("train", overrides)).read()[0]


def scores(parts: dict[str, Any]) -> dict[str, float]:
    """Accuracy on validation and test, macro F1 on test, of a model fitted on the training part."""
    texts = {part: [row.text for row in rows] for part, rows in parts.items()}
    labels = {part: [row.label for row in rows] for part, rows in parts.items()}
    model = make_pipeline(
        TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=30, max_iter=300),  # C and signs: best on validation of stdlib_topics
    )
    model.fit(texts["train"], labels["train"])
    accuracies = {f"{part}/accuracy": float(model.score(texts[part], labels[part])) for part in ("val", "test")}
    return {
        **accuracies,
        "test/f1": float(f1_score(labels["test"], model.predict(texts["test"]), average="macro")),
    }


if __name__ == "__main__":
    for name, value in scores(read_parts(sys.argv[1:] or ["data=stdlib_topics"])).items():
        print(f"{name} {value:.4f}")
