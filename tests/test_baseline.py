"""Simple models on the split and with the metrics of training, and what is said of a run beside them."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
import samples
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn import metrics as reference

from quartet import build
from quartet import simple_models as simple
from quartet.commands import baseline
from quartet.commands.train import create_and_train
from quartet.data.text.sources import Document

BRIEF = ["trainer.max_epochs=2", "callbacks.data_report=null", "callbacks.figures=null", "logger=none"]


@pytest.fixture
def report(outputs, capsys):
    """report(config) -> what was printed, and what was written."""

    def run(config):
        before = {*outputs.glob("baselines/*.json")}
        baseline.report(config)
        (path,) = {*outputs.glob("baselines/*.json")} - before
        return capsys.readouterr().out, json.loads(path.read_text(encoding="utf-8"))

    return run


# the same split, the same metrics


def test_the_majority_class_has_the_share_of_its_class(compose, report):
    printed, written = report(compose("data=breast_cancer"))
    data = build.build_data(compose("data=breast_cancer"))
    data.setup()
    for part in ("val", "test"):
        target = data.datasets[part].target  # type: ignore[attr-defined]
        found = written["models"]["majority class"]["metrics"]
        assert found[f"{part}/accuracy"] == pytest.approx(target.float().mean().item(), abs=1e-6)
        assert found[f"{part}/auroc"] == 0.5
    assert written["samples"] == {part: len(ids) for part, ids in data.ids.items()}
    assert written["fingerprint"] == data.preprocessing()["fingerprint"]
    best = max(model["metrics"]["test/accuracy"] for model in written["models"].values())
    assert best > 0.9 and f"{best:.4f}*" in printed


@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error", "binary_cross_entropy"])
def test_known_probabilities_have_the_metrics_that_scikit_learn_gives_them(compose, loss):
    config = compose("model=mlp", "data=wine", f"task.loss={loss}")
    data = build.build_data(config)
    data.setup()
    task = build.make(build.plain(config)["task"], "task", network=baseline.Given(), spec=data.spec)
    random = np.random.default_rng(0)
    target, probabilities = np.arange(60) % 3, random.dirichlet([1, 1, 1], 60)
    found = baseline.score(task, "val", probabilities, target, loss)
    said = probabilities.argmax(1)
    one_hot = np.eye(3)[target]
    losses = {
        "cross_entropy": reference.log_loss(target, probabilities),
        "mean_squared_error": np.square(probabilities - one_hot).sum(1).mean(),
        "binary_cross_entropy": -np.log(np.where(one_hot == 1, probabilities, 1 - probabilities)).sum(1).mean(),
    }
    assert found["val/loss"] == pytest.approx(losses[loss], rel=1e-5)
    assert found["val/accuracy"] == pytest.approx(reference.accuracy_score(target, said))
    assert found["val/f1"] == pytest.approx(reference.f1_score(target, said, average="macro"))
    assert found["val/auroc"] == pytest.approx(reference.roc_auc_score(target, probabilities, multi_class="ovr"))


@pytest.mark.parametrize("data_name", ["breast_cancer", "diabetes"])
def test_a_network_s_own_outputs_have_the_metrics_that_training_logged(compose, data_name):
    """On the targets that baselines are scored on: so the samples and the metrics are those of training."""
    config = compose("model=mlp", f"data={data_name}", *BRIEF)
    run, result = create_and_train(config)
    data = build.restore_data(run, build.opened(run))
    task = build.build_task(config, data.spec)
    from quartet.engine.weights import load_checkpoint

    load_checkpoint(task, run.best_checkpoint)
    given = build.make(build.plain(config)["task"], "task", network=baseline.Given(), spec=data.spec)
    for part in ("val", "test"):
        batch = data.datasets[part].gather(torch.arange(len(data.datasets[part])))
        with torch.no_grad():
            output = task.eval().network(**batch["inputs"])
        known = output.softmax(-1) if data.spec.classes else output.squeeze(-1)
        found = baseline.score(given, part, known.numpy(), batch["target"].numpy(), config.task.loss)
        for name, value in found.items():
            assert value == pytest.approx(result["metrics"][name], rel=1e-4, abs=1e-5), name


def test_the_mean_explains_nothing_and_ridge_regression_something(compose, report):
    printed, written = report(compose("data=diabetes", "test=false"))
    models = written["models"]
    assert models["mean"]["metrics"]["val/r2"] == pytest.approx(0, abs=0.05)
    assert models["ridge regression"]["metrics"]["val/r2"] > 0.4
    assert "test" not in printed.split("no completed run")[0] and not any(
        "test/r2" in m["metrics"] for m in models.values()
    )


def test_every_kind_of_data_has_its_models(compose, report, tmp_path, small_text):
    table = samples.sample_table(tmp_path)
    wanted = {
        f"csv data.path={table} data.target=diagnosis": {"majority class", "logistic regression", "gradient boosting"},
        f"csv data.path={table} data.target=radius task=regression": {"mean", "ridge regression", "gradient boosting"},
        f"labelled_text data.path={samples.sample_labelled_text(tmp_path / 'l')}": {
            "majority class",
            "tf-idf with logistic regression",
        },
        f"image_folder data.path={samples.sample_image_folder(tmp_path)} data.batch_size=4": {
            "majority class",
            "logistic regression on pixels",
        },
        "shakespeare": {"byte frequencies", "5-gram model of bytes", "xz -9e"},
    }
    for words, models in wanted.items():
        _, written = report(compose(*f"data={words}".split()))
        assert models <= set(written["models"]), words
        metrics = [model["metrics"] for model in written["models"].values()]
        assert all(np.isfinite(value) for values in metrics for value in values.values())


def test_tf_idf_sees_whole_texts_and_separates_what_words_separate(compose, report, tmp_path):
    path = samples.sample_labelled_text(tmp_path)
    _, written = report(compose("data=labelled_text", f"data.path={path}", "data.context_length=2"))
    assert written["models"]["tf-idf with logistic regression"]["metrics"]["test/accuracy"] == 1


def test_words_are_ideographs_too():
    assert re.findall(simple.WORD, "風停了, it is naïve!") == ["風", "停", "了", ",", "it", "is", "naïve", "!"]


# models


def test_of_very_many_examples_some_are_drawn(compose, report, monkeypatch):
    monkeypatch.setattr(simple, "MOST_VALUES", 13 * 120)  # 13 columns; three classes take three trees a round
    printed, written = report(compose("data=wine"))
    assert "120 of the 142 training examples, drawn at random" in printed
    assert re.search(r"gradient boosting: .* rounds, 40 rows", printed)
    assert written["models"]["logistic regression"]["metrics"]["test/accuracy"] > 0.8


def test_a_class_that_does_not_train_has_no_probability():
    random = np.random.default_rng(0)
    y = {part: random.integers(0, 2, 50) for part in ("train", "val")}
    x = {part: target[:, None] + random.normal(size=(50, 1)) for part, target in y.items()}
    (output,) = simple.linear(x, y, 3).outputs.values()
    assert output.shape == (50, 3) and np.allclose(output.sum(1), 1) and output[:, 2].max() == 0


@pytest.mark.parametrize("n_classes", [0, 2, 3])
def test_gradient_boosting_learns_what_a_linear_model_cannot(n_classes):
    """Which categories of 40 go together, and a square; the same seed gives the same trees."""
    random = np.random.default_rng(0)
    x, y = {}, {}
    for part, n in (("train", 600), ("val", 200), ("test", 200)):
        numbers, names = random.normal(size=n), random.integers(0, 40, n)
        value = numbers**2 + 3.0 * (names % 2)
        x[part] = np.stack([numbers, names], 1)
        y[part] = np.digitize(value, [2.0, 3.5][: n_classes - 1]) if n_classes else value
    fitted, again = (simple.boosted(x, y, n_classes, n_numeric=1, seed=0) for _ in range(2))
    outputs = fitted.outputs["test"]
    assert np.array_equal(outputs, again.outputs["test"]) and fitted.choice == again.choice
    if n_classes:
        assert (outputs.argmax(1) == y["test"]).mean() > 0.85 and np.allclose(outputs.sum(1), 1)
    else:
        assert np.square(outputs - y["test"]).mean() < 0.2 * np.var(y["test"])


def test_the_penalty_is_chosen_on_validation():
    """Twenty rows, forty columns of noise and one that counts: a weak penalty learns the noise by heart."""
    random = np.random.default_rng(0)
    x = {part: random.normal(size=(n, 41)) for part, n in (("train", 20), ("val", 500), ("test", 500))}
    y = {part: (values[:, 0] + random.normal(size=len(values)) > 0).astype(int) for part, values in x.items()}
    chosen = simple.linear(x, y, 2)
    assert 1e-3 <= float(chosen.choice.split("= ")[1]) <= 10


# running text


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.binary(max_size=12), st.integers(1, 8))
def test_the_probabilities_of_the_next_byte_sum_to_one(train, context, order):
    seen = np.frombuffer(train * 3, np.uint8)
    streams = [np.frombuffer(context + bytes([byte]), np.uint8) for byte in range(256)]
    *_, probabilities = simple.kneser_ney(seen, streams, order)
    last = [p[-1] for p in probabilities]
    assert min(last) > 0 and sum(last) == pytest.approx(1, abs=1e-9)


def test_a_text_that_repeats_costs_next_to_nothing_and_noise_costs_eight_bits():
    line = b"the same line again and again\n"
    train, held_out = (np.frombuffer(line * n, np.uint8) for n in (2000, 200))
    *_, (p,) = simple.kneser_ney(train, [held_out], 8)
    assert simple.bits_per_byte(-np.log2(p).sum(), held_out) < 0.01
    assert simple.bits_per_byte(simple.xz_bits(train, [held_out])[0], held_out) < 0.1
    random = np.random.default_rng(0)
    noise, more = (random.integers(0, 255, n, dtype=np.uint8) for n in (20_000, 5_000))
    assert simple.bits_per_byte(simple.xz_bits(noise, [more])[0], more) == pytest.approx(8, abs=0.1)
    (first,), *_ = simple.kneser_ney(noise, [more], 1)
    assert simple.bits_per_byte(-np.log2(first).sum(), more) == pytest.approx(8, abs=0.05)


def test_a_trigram_by_hand():
    """Too few n-grams to estimate discounts from: 0.75 of each count is set aside for the order below."""
    train = np.frombuffer(b"abxabxabxcby", np.uint8)
    *_, (p,) = simple.kneser_ney(train, [np.frombuffer(b"abx", np.uint8)], 3)
    # "" by pairs: of the 7 different ones, END a and those of "abxcby" and "xa", one ends in x; 5 bytes end some
    x = (1 - 0.75) / 7 + 5 * 0.75 / 7 / 256
    # "b" by triples: one kind of byte before "bx", and one before "by"
    x = (1 - 0.75) / 2 + 2 * 0.75 / 2 * x
    # "ab": three times "abx", nothing else
    assert p[-1] == pytest.approx((3 - 0.75) / 3 + 0.75 / 3 * x, rel=1e-12)


def test_ends_of_documents_are_told_but_are_no_bytes_of_the_text():
    stream = simple.byte_stream([Document("a", "né"), Document("b", "")])
    assert bytes(stream) == b"n\xc3\xa9\xff\xff" and simple.bits_per_byte(6.0, stream) == 2


def test_of_a_large_text_a_part_stands_for_all(compose, report, monkeypatch, small_text):
    monkeypatch.setattr(simple, "LEARN_BYTES", 8_000)
    printed, written = report(compose("data=stdlib", "data.context_length=8"))
    assert re.search(r"one piece in \d+ of the training text", printed)
    assert written["models"]["5-gram model of bytes"]["metrics"]["val/bits_per_byte"] < 8


# beside a run


def test_the_newest_run_on_the_same_split_stands_below_and_is_compared(compose, report):
    data = ["model=mlp", "data=wine"]
    printed, written = report(compose(*data))
    assert "no completed run on these data" in printed and written["run"] is None
    run, result = create_and_train(compose(*data, "data.batch_size=8", *BRIEF))
    create_and_train(compose(*data, "data.split_seed=1", *BRIEF))
    create_and_train(compose("model=mlp", "data=breast_cancer", *BRIEF))
    printed, written = report(compose(*data))
    assert written["run"] == str(run.directory) and written["run_metrics"]["test/f1"] == result["metrics"]["test/f1"]
    assert re.search(r"^newest run .*\d\.\d{4}", printed, re.M)
    assert len(re.findall(r"(better|equal).* (?:val|test)/accuracy: \d\.\d{4}", printed)) == 2


def test_a_run_on_data_that_have_changed_is_not_compared(compose, report, tmp_path):
    table = samples.sample_table(tmp_path)
    words = ["model=mlp", "data=csv", f"data.path={table}", "data.target=diagnosis"]
    run, _ = create_and_train(compose(*words, *BRIEF))
    assert report(compose(*words))[1]["run"] == str(run.directory)
    assert report(compose(*words, "monitor.metric=val/f1"))[0].count("val/f1: ") == 1
    table.write_text(table.read_text().replace("malignant", "bad"))
    assert report(compose(*words))[1]["run"] is None
    moved = table.rename(tmp_path / "moved.csv")
    moved.write_text(moved.read_text().replace("bad", "malignant"))
    assert report(compose(*words[:2], f"data.path={moved}", words[3]))[1]["run"] == str(run.directory)


@pytest.mark.parametrize(("run", "said"), [(0.9, "the network is better"), (0.8, "equal"), (0.7, "ridge is better")])
def test_the_verdict_names_the_better_one(compose, run, said):
    rows = [baseline.Row("mean", {"val/r2": 0.0, "val/rmse": 3.0}), baseline.Row("ridge", {"val/r2": 0.8})]
    rows[1].metrics["val/rmse"] = 1.0
    (line,) = baseline.verdict(rows, {"val/r2": run}, ("val",), compose("model=mlp", "data=diabetes"), {"val": 9})
    assert said in line and "val/r2" in line


def test_a_run_without_a_test_says_so(compose):
    rows = [baseline.Row("mean", {"val/r2": 0.0, "test/r2": 0.0})]
    lines = list(baseline.verdict(rows, {"val/r2": 1.0}, ("val", "test"), compose("data=diabetes"), {"val": 9}))
    assert lines[1] == "the run has no test/r2"


def test_a_narrow_terminal_shows_fewer_metrics_and_every_model(compose):
    metrics = {f"{part}/{name}": 0.5 for part in ("val", "test") for name in ("accuracy", "auroc", "f1", "loss")}
    rows = [baseline.Row("a model with quite a long name", metrics), baseline.Row("[bold]another", metrics)]
    for width, shown in ((70, 2), (120, 4)):
        console = Console(width=width, force_terminal=True, file=io.StringIO())
        console.print(baseline.table(rows, metrics, ("val", "test"), compose("data=wine"), console))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "a model with quite a long name" in text and "[bold]another" in text and "newest run" in text
        assert text.count("0.5000*") == 3 * 2 * shown


# the command


def test_the_words_of_a_training_command(script, outputs, tmp_path):
    done = script("baseline", "experiment=wine", "data.split=[0.7,0.15,0.15]", "optimizer.lr=1", "seed=3")
    assert done.returncode == 0, done.stderr
    assert "wine, samples: train 12" in done.stdout and "python" in done.stdout and "experiment=wine" in done.stdout
    assert len(list(outputs.glob("baselines/wine-*.json"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_several_data_one_after_the_other(script, outputs, tmp_path):
    done = script("baseline", "-m", "data=wine,diabetes")
    assert done.returncode == 0, done.stderr
    assert "wine, samples" in done.stdout and "diabetes, samples" in done.stdout
    assert len(list(outputs.glob("baselines/*.json"))) == 2 and not (tmp_path / "multirun.yaml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data=breast_cancer task=regression", "the target of these data is a class; use task=classification"),
        ("data=diabetes task=classification", "the target of these data is a number; use task=regression"),
        ("data=csv", "data.path is missing"),
        ("data=csv data.path=nowhere.csv data.target=y", "nowhere.csv does not exist"),
        ("data=wine data.split=[0.5,0.6]", "data.split must be three shares"),
        ("data=wines", "did you mean wine?"),
        ("data=wine run=latest", "run= is for"),
    ],
)
def test_mistakes_are_one_line(script, words, said):
    done = script("baseline", *words.split())
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
