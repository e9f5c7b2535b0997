"""What decides on the best checkpoint: the direction belongs to the metric, and the metric has a value."""

from __future__ import annotations

import pytest

from quartet import build
from quartet.commands.train import create_and_train
from quartet.config import settle_monitor
from quartet.sweeps.plan import Plan

TINY = ["model=mlp", "model.hidden=[8]", "trainer.max_epochs=2", "trainer.accelerator=cpu", "callbacks.figures=null"]


@pytest.mark.parametrize(
    ("metric", "mode"), [("val/accuracy", "max"), ("val/auroc", "max"), ("val/loss", "min"), ("val/r2", "max")]
)
def test_the_direction_is_the_metric_s(compose, metric, mode):
    config = compose("model=mlp", f"monitor.metric={metric}", "callbacks=early_stopping", "scheduler=plateau")
    settle_monitor(config)
    assert config.monitor.mode == config.callbacks.checkpoint.mode == config.callbacks.early_stopping.mode == mode


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["monitor.mode=max"], "monitor.mode=max contradicts val/loss, .* the smaller it is; .*monitor.mode=min"),
        (["monitor.metric=val/f1", "monitor.mode=min"], "contradicts val/f1, which is better the larger it is"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/accuracy"],
            "callbacks.early_stopping.mode=min contradicts val/accuracy, .*give callbacks.early_stopping.mode=max",
        ),
        (["monitor.metric=val/mine"], "monitor.mode: give min or max"),
    ],
)
def test_a_contradiction_is_refused(compose, words, message):
    with pytest.raises(ValueError, match=message):
        build.check(compose("model=mlp", *words))


def test_a_sweep_s_objectives_contradict_no_metric(compose):
    settings = {**compose("model=mlp").sweep, "objectives": {"val/accuracy": "min"}}
    with pytest.raises(ValueError, match=r"sweep\.objectives\.val/accuracy=min contradicts val/accuracy"):
        Plan.make(settings, [], [], [], {"metric": "val/loss", "mode": "min"})


def test_the_best_accuracy_is_the_highest(compose):
    run, result = create_and_train(compose(*TINY, "monitor.metric=val/accuracy", "trainer.max_epochs=6"))
    rows = [line.split(",") for line in (run.directory / "metrics.csv").read_text("utf-8").splitlines()]
    column = rows[0].index("val/accuracy")
    values = [float(row[column]) for row in rows[1:] if row[column]]
    assert len(set(values)) > 1 and result["objective"]["value"] == max(values)


def table(path, rows):
    path.write_text(
        "a,b,y\n" + "".join(f"{i * 7 % 10},{i * i % 7},{i / 3:.3f}\n" for i in range(rows)), encoding="utf-8"
    )
    return [*TINY, "data=csv", f"data.path={path}", "data.target=y", "task=regression", "data.batch_size=4"]


def test_one_validation_row_has_errors_and_no_r2(compose, tmp_path):
    _, result = create_and_train(compose(*table(tmp_path / "ten.csv", 10)))
    assert {"val/loss", "val/rmse", "val/mae"} <= result["metrics"].keys()
    assert not {"val/r2", "test/r2"} & result["metrics"].keys() and result["status"] == "completed"


def test_a_metric_without_a_value_is_not_monitored(compose, tmp_path, outputs):
    words = [*table(tmp_path / "ten.csv", 10), "monitor.metric=val/r2"]
    with pytest.raises(ValueError, match=r"monitor.metric=val/r2 has no value for the validation part .*data\.split"):
        create_and_train(compose(*words))
    assert not list(outputs.rglob("config.yaml")), "refused before it began"
