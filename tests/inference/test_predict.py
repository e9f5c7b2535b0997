"""Prediction and evaluation of new data, from a run that was moved and whose data are gone."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from inference.conftest import settings_of, table
from quartet import build
from quartet.commands.evaluate import report
from quartet.commands.predict import predict
from quartet.inference.ensemble import open_model
from quartet.inference.model import Model
from quartet.run import Run

FAMILIES = ("table", "regression", "images", "rnn_classifier", "transformer_classifier")
LANGUAGE = ("rnn", "transformer")


@pytest.fixture
def predicted(tmp_path, capsys, monkeypatch):
    """predicted(run, input, …) -> the rows that are written, and what is said on standard error."""
    monkeypatch.chdir(tmp_path)

    def call(run: Path, source: Any, **settings: Any) -> tuple[pd.DataFrame, str]:
        capsys.readouterr()  # what training has said
        predict(settings_of("predict", run=str(run), input=str(source), **settings))
        found = capsys.readouterr()
        output = settings.get("output")
        if output is None:
            return pd.read_csv(io.StringIO(found.out), dtype={"prediction": str, "target": str}), found.err
        return pd.read_csv(output) if output.endswith(".csv") else pd.DataFrame(), found.err

    return call


def said_metrics(text: str) -> dict[str, float]:
    lines = [line.split() for line in text.partition("against the target")[2].splitlines()[1:]]
    return {words[0]: float(words[1]) for words in lines if len(words) == 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_of_the_test_part_have_the_metrics_that_training_wrote(small_runs, predicted, family):
    trained = small_runs(family)
    rows, said = predicted(trained.directory, trained.test_data)
    assert len(rows) > 10 and said_metrics(said)
    for name, value in said_metrics(said).items():
        assert value == pytest.approx(trained.metrics[f"/{name}"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, *LANGUAGE])
def test_evaluation_of_the_test_part_as_new_data_has_the_metrics_that_training_wrote(
    small_runs, family, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    trained = small_runs(family)
    report(settings_of("evaluate", run=str(trained.directory), path=trained.test_data, resamples=100))
    found = json.loads((trained.directory / "evaluation.json").read_text())["parts"][0]
    assert found["part"] == "new"
    for name, value in trained.metrics.items():
        if name.startswith("/"):
            assert found["metrics"][name[1:]] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    main = next(name for name in ("accuracy", "rmse") if name in found["metrics"])
    low, high = found["intervals"][main]
    assert low <= found["metrics"][main] <= high and low < high
    page = (trained.directory / "evaluation.html").read_text()
    assert "<script" not in page and main in page and main in (trained.directory / "evaluation.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_example_is_encoded_as_in_training(small_runs, family):
    """The path of training (a whole part) and that of prediction (a stream) give the same tensors, bit for bit."""
    trained = small_runs(family)
    run = Run.open(str(trained.directory))
    data = build.restore_data(run, build.opened(run), read=False)
    data.use_new(trained.test_data)
    n = len(data.datasets["test"])
    batch = data.datasets["test"].gather(torch.arange(n))
    if family == "images":
        batch = data.on_after_batch_transfer(batch, 0)
    streamed = [(chunk, data.encode(chunk.values)) for chunk in data.examples(trained.test_data)]
    assert sum(len(chunk) for chunk, _ in streamed) == n
    for name, value in batch["inputs"].items():
        width = value.shape[1]
        joined = torch.cat([inputs[name] for _, inputs in streamed])
        assert joined.dtype == value.dtype and torch.equal(joined[:, :width], value)


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_document_has_the_same_tokens_when_it_is_scored_and_when_it_is_measured(small_runs, family):
    trained = small_runs(family)
    run = Run.open(str(trained.directory))
    data: Any = build.restore_data(run, build.opened(run), read=False)
    data.use_new(trained.test_data)
    texts = [text for chunk in data.examples(trained.test_data) for text in chunk.values]
    scored = [token for text in texts for token in [*data.tokenizer.encode(text), data.tokenizer.eos_id]]
    assert len(texts) > 1 and data.datasets["test"].stream.tolist() == scored


# tables


def frame_of(trained: Any) -> pd.DataFrame:
    return pd.read_csv(trained.test_data, keep_default_na=False, dtype=str)


@pytest.mark.parametrize("change", ["shuffled", "semicolons", "crlf", "bom", "jsonl", "parquet", "tsv"])
def test_other_ways_to_write_a_table_give_the_same_predictions(small_runs, predicted, tmp_path, change):
    trained = small_runs("table")
    frame, expected = frame_of(trained), predicted(trained.directory, trained.test_data)[0]
    path = tmp_path / f"new.{change if change in ('jsonl', 'parquet', 'tsv') else 'csv'}"
    if change == "shuffled":
        frame[frame.columns[::-1]].assign(more=1).to_csv(path, index=False)
    elif change == "semicolons":
        frame.assign(x1=frame.x1.str.replace(".", ","), x2=frame.x2.str.replace(".", ",")).to_csv(
            path, index=False, sep=";"
        )
    elif change == "crlf":
        frame.to_csv(path, index=False, lineterminator="\r\n")
    elif change == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + frame.to_csv(index=False).encode())
    elif change == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif change == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    else:
        frame.to_parquet(path)
    if change == "semicolons":  # a run reads the decimal sign that it was trained on
        with pytest.raises(ValueError, match="column 'x1' must hold a number, but row 1 has"):
            predicted(trained.directory, path)
        return
    rows, said = predicted(trained.directory, path)
    pd.testing.assert_frame_equal(rows, expected)
    assert ("ignored, unknown to the run: 'more'" in said) == (change == "shuffled")


def test_the_target_may_be_absent_or_have_other_classes(small_runs, predicted, tmp_path):
    trained = small_runs("table")
    frame = frame_of(trained)
    frame.drop(columns="y").to_csv("absent.csv", index=False)
    rows, said = predicted(trained.directory, "absent.csv")
    assert "target" not in rows and "against" not in said and len(rows) == len(frame)
    frame.loc[:4, "y"] = ["medium", "", "medium", "low", "high"]
    frame.to_csv("other.csv", index=False)
    _, said = predicted(trained.directory, "other.csv")
    assert "3 targets are missing or are a class that the run does not know" in said
    with pytest.raises(ValueError, match=r"must be one of the classes high, low, but row .* 'medium'"):
        report(settings_of("evaluate", run=str(trained.directory), path="other.csv"))


def test_rows_without_a_target_are_left_out_if_training_left_them_out(small_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = small_runs("regression")
    frame = frame_of(trained)
    frame.loc[:3, "z"] = ""
    frame.to_csv("new.csv", index=False)
    with pytest.raises(ValueError, match="must be a number, but row 1, 2, 3, 4 has None"):
        report(settings_of("evaluate", run=str(trained.directory), path="new.csv", resamples=0))
    shutil.copytree(trained.directory, "copy")
    config = Path("copy/config.yaml")
    config.write_text(config.read_text().replace("drop_missing_target: false", "drop_missing_target: true"))
    report(settings_of("evaluate", run="copy", path="new.csv", resamples=0))
    assert json.loads(Path("copy/evaluation.json").read_text())["parts"][0]["samples"] == len(frame) - 4


def test_unseen_categories_and_gaps_are_predicted_and_absent_columns_are_named(small_runs, predicted):
    trained = small_runs("table")
    frame = frame_of(trained)
    frame.loc[0, "city"], frame.loc[1, "city"], frame.loc[2, "x2"] = "Oslo", "", "NA"
    frame.to_csv("new.csv", index=False)
    rows, _ = predicted(trained.directory, "new.csv")
    assert len(rows) == len(frame) and rows["p(high)"].notna().all()
    frame.drop(columns=["x1", "city"]).to_csv("less.csv", index=False)
    with pytest.raises(ValueError, match=r"less.csv: no column 'city', 'x1'"):
        predicted(trained.directory, "less.csv")


def test_a_row_that_cannot_be_read_stops_or_is_skipped(small_runs, predicted):
    trained = small_runs("table")
    frame = frame_of(trained)
    whole, _ = predicted(trained.directory, trained.test_data)
    frame.loc[[2, 7], "x1"] = "many"
    frame.to_csv("new.csv", index=False)
    with pytest.raises(ValueError, match=r"row 3 has 'many'.*on_error=skip"):
        predicted(trained.directory, "new.csv", output="out.csv")
    assert not Path("out.csv").exists() and not list(Path().glob(".out*"))
    rows, said = predicted(trained.directory, "new.csv", on_error="skip")
    assert "2 skipped" in said and "row 3" in said and "row 8" in said
    pd.testing.assert_frame_equal(rows, whole.drop([2, 7]).reset_index(drop=True))


def test_outputs_hold_the_same_rows(small_runs, predicted):
    trained = small_runs("table")
    rows, _ = predicted(trained.directory, trained.test_data)
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        predicted(trained.directory, trained.test_data, output=name)
    read = [
        pd.read_csv("out.csv"),
        pd.read_json("out.jsonl", lines=True),
        parquet.read_table("out.parquet").to_pandas(),
    ]
    for frame in read:
        assert list(frame.columns) == list(rows.columns) and frame.prediction.tolist() == rows.prediction.tolist()
        np.testing.assert_allclose(frame["p(high)"], rows["p(high)"], atol=1e-6)
    top, _ = predicted(trained.directory, trained.test_data, top_k=1)
    np.testing.assert_allclose(top.probability, rows[["p(high)", "p(low)"]].max(axis=1), atol=1e-6)


def test_a_regression_is_in_the_unit_of_the_target(small_runs, predicted):
    trained = small_runs("regression")
    rows, _ = predicted(trained.directory, trained.test_data)
    assert abs(rows.prediction.astype(float).mean() - 1000) < 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nothing.csv"}, "nothing.csv does not exist"),
        ({"source": "some text"}, "some text does not exist"),
        ({"source": "empty.csv"}, "empty.csv: the file is empty"),
        ({"source": "image.png"}, "image.png: is binary"),
        ({"source": "empty.csv", "output": "out.xlsx"}, "must end in .csv, .jsonl, .parquet"),
        ({"source": "empty.csv", "output": "no/out.csv"}, "there is no folder"),
        ({"source": "empty.csv", "output": "empty.csv"}, "would replace what is read"),
        ({"source": "empty.csv", "on_error": "ignore", "top_k": 0}, "on_error must be one of .*\ntop_k must be"),
    ],
)
def test_input_of_another_kind_is_one_line(small_runs, predicted, settings, message):
    Path("empty.csv").write_text("\n")
    Image.new("RGB", (4, 4)).save("image.png")
    source = settings.pop("source")
    with pytest.raises((ValueError, OSError), match=message):
        predicted(small_runs("table").directory, source, **settings)


# images and texts


def test_images_of_any_mode_and_size_alone_in_a_folder_and_by_a_glob(small_runs, predicted):
    trained = small_runs("images")
    Path("mixed").mkdir()
    for i, mode in enumerate(("L", "RGBA", "P", "CMYK", "1")):
        Image.new("RGB", (5 + i, 30), "white").convert(mode).save(f"mixed/{i}.{'tiff' if mode == 'CMYK' else 'png'}")
    rows, said = predicted(trained.directory, "mixed")
    assert rows.file.tolist() == ["0.png", "1.png", "2.png", "3.tiff", "4.png"] and "against" not in said
    assert len(predicted(trained.directory, "mixed/*.png")[0]) == 4
    assert len(predicted(trained.directory, "mixed/3.tiff")[0]) == 1
    Path("mixed/5.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"5.png cannot be read as an image"):
        predicted(trained.directory, "mixed")
    assert "1 skipped" in predicted(trained.directory, "mixed", on_error="skip")[1]


def test_a_folder_of_other_classes_is_refused(small_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = small_runs("images")
    shutil.copytree(trained.test_data, "test")
    Path("test/day").rename("test/noon")
    with pytest.raises(ValueError, match="class folders noon, and the run knows day, night"):
        report(settings_of("evaluate", run=str(trained.directory), path="test"))


def test_texts_typed_by_line_by_file_and_from_standard_input(small_runs, predicted, monkeypatch):
    trained = small_runs("rnn_classifier")
    typed, _ = predicted(trained.directory, "great lovely film")
    Path("lines.txt").write_text("great lovely film\r\n\r\nawful film", encoding="utf-8")
    lines, _ = predicted(trained.directory, "lines.txt")
    monkeypatch.setattr(sys, "stdin", io.StringIO("great lovely film\nawful film\n"))
    piped, _ = predicted(trained.directory, "-")
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("great lovely film")
    files, _ = predicted(trained.directory, "texts")
    assert lines.line.tolist() == [1, 3] and piped.line.tolist() == [1, 2] and files.file.tolist() == ["a.txt"]
    for rows in (lines, piped, files):
        assert rows["p(good)"][0] == pytest.approx(typed["p(good)"][0], abs=1e-6)
    with pytest.raises(FileNotFoundError, match=r"input=reviews.csv: no such file"):
        predicted(trained.directory, "reviews.csv")


def test_characters_that_training_never_saw_and_missing_texts(small_runs, predicted):
    trained = small_runs("rnn_classifier")
    pd.DataFrame({"text": ["日本 \U0001f600 film", None, "film"], "other": [1, 2, 3]}).to_csv("new.csv", index=False)
    with pytest.raises(ValueError, match="row 2: the text is missing"):
        predicted(trained.directory, "new.csv")
    rows, _ = predicted(trained.directory, "new.csv", on_error="skip")
    assert rows.row.tolist() == [1, 3]


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_language_model_says_how_likely_texts_are(small_runs, predicted, family):
    trained = small_runs(family)
    Path("lines.txt").write_text("to be or not to be\nzzzz qqqq xxxx\n")
    rows, _ = predicted(trained.directory, "lines.txt")
    assert rows.bits_per_byte[0] < rows.bits_per_byte[1] and (rows.logprob < 0).all()


def test_memory_and_batches_do_not_change_predictions(small_runs, predicted, monkeypatch):
    """A file that is read in many blocks, computed in small batches, gives what it gives at once."""
    trained = small_runs("table")
    expected, _ = predicted(trained.directory, trained.test_data)
    monkeypatch.setattr("quartet.data.streaming.STREAMED", 300)
    rows, said = predicted(trained.directory, trained.test_data, batch_size=3)
    assert rows.row.tolist() == expected.row.tolist() and said_metrics(said)
    np.testing.assert_allclose(rows["p(high)"], expected["p(high)"], atol=1e-6)


@pytest.mark.parametrize("family", ["table", "transformer_classifier"])
def test_threads_do_not_change_predictions(small_runs, family):
    model = open_model(Run(small_runs(family).directory)).load(batch_size=7)
    assert isinstance(model, Model)
    values = next(iter(model.data.examples(small_runs(family).test_data))).values
    inputs, before = model.encode(values), torch.get_num_threads()
    try:
        found = []
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            found.append(model.predict(inputs))
            assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    assert len(found[0]) > 14
    np.testing.assert_allclose(*found, atol=1e-6)


# evaluation


def test_slices_name_the_largest_gap_first(small_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = small_runs("table")
    frame = table(seed=1).drop(columns="z")
    frame.to_csv("new.csv", index=False)
    capsys.readouterr()
    report(settings_of("evaluate", run=str(trained.directory), path="new.csv", slices=["city", "x2"], resamples=0))
    found = json.loads((trained.directory / "evaluation.json").read_text())["parts"][0]
    assert {one["column"] for one in found["slices"]} == {"city", "x2"}
    assert sum(one["n"] for one in found["slices"]) == 2 * len(frame)
    sizes = [gap["size"] for gap in found["gaps"]]
    assert len(sizes) == 2 and sizes == sorted(sizes, reverse=True) and "gap, " in capsys.readouterr().out
    with pytest.raises(ValueError, match="no column 'town'; the columns are"):
        report(settings_of("evaluate", run=str(trained.directory), path="new.csv", slices=["town"]))


def test_slices_of_texts_by_a_column_of_the_file(small_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = small_runs("rnn_classifier")
    report(settings_of("evaluate", run=str(trained.directory), path=trained.test_data, slices=["year"], resamples=0))
    found = json.loads((trained.directory / "evaluation.json").read_text())["parts"][0]
    counts = pd.read_csv(trained.test_data).year.value_counts()
    assert {one["value"]: one["n"] for one in found["slices"]} == {str(year): n for year, n in counts.items()}


def test_calibration_is_kept_and_used(small_runs, tmp_path, monkeypatch, predicted, capsys):
    """On a copy: the validation part must be there, so the data are brought back under another name."""
    monkeypatch.chdir(tmp_path)
    trained = small_runs("table")
    shutil.copytree(trained.directory, "copy")
    table().drop(columns="z").to_csv("data.csv", index=False)
    before, _ = predicted(Path("copy"), trained.test_data)
    report(
        settings_of("evaluate", run="copy", path="data.csv", split="test", calibrate=True, threshold="f1", resamples=0)
    )
    said = capsys.readouterr().out
    kept = json.loads(Path("copy/calibration.json").read_text())
    assert "Temperature" in said and 0 <= kept["threshold"] <= 1
    after, _ = predicted(Path("copy"), trained.test_data)
    assert (after["p(high)"] != before["p(high)"]).any()
    high = after["p(low)"] < kept["threshold"]
    assert (after.prediction == np.where(high, "high", "low")).all()
    first, _ = predicted(Path("copy"), trained.test_data, top_k=1)
    assert (first.prediction == after.prediction).all()  # the threshold decides there too
    ranked = before["p(high)"].argsort(kind="stable"), after["p(high)"].argsort(kind="stable")
    assert (before["p(high)"][ranked[0]].rank() == before["p(high)"][ranked[1]].rank().to_numpy()).all()
    # what is damaged is refused
    Path("copy/calibration.json").write_text('{"temperature": -1}')
    with pytest.raises(ValueError, match=r"calibration.json is damaged"):
        open_model(Run.open("copy")).load(8)
