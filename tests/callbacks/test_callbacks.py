"""The callbacks in real, tiny training runs: a linear classifier of 8 numbers, a bigram language model."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from rich.live import Live
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn
from torch.utils.data import DataLoader

from quartet.callbacks.figures import Figures
from quartet.callbacks.metrics_file import MetricsFile
from quartet.callbacks.monitors import GradientNorm, LearningRate, Throughput, learning_rates
from quartet.callbacks.progress import LiveProgress, PlainProgress, count, number, progress
from quartet.callbacks.samples import TextSamples, evaluating
from quartet.callbacks.tensorboard import Overlay, RunTensorBoard, flatten, layout, write_hparams
from quartet.data.memory import Samples
from quartet.data.spec import Spec
from quartet.files import read_metrics
from quartet.say import duration

Layout: Any = layout_pb2.Layout  # type: ignore[attr-defined]
HParams: Any = plugin_data_pb2.HParamsPluginData  # type: ignore[attr-defined]
N, SIDE, CLASSES = 40, 4, ("zero", "one", "two")


class Clock:
    """Seconds that pass only when told, or a fixed number at each reading."""

    def __init__(self, tick: float = 0.0):
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def batches(dataset: Samples, size: int) -> DataLoader:
    return DataLoader([dataset.gather(ids) for ids in torch.arange(len(dataset)).split(size)], batch_size=None)  # type: ignore[arg-type]


class Data(LightningDataModule):
    """Pictures of noise in three classes; `raw_images` gives them as (n, S, S, 1)."""

    def __init__(self, batch_size: int = 10):
        super().__init__()
        self.batch_size = batch_size
        image = torch.randint(0, 255, (N, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        self.datasets = {part: Samples({"image": image.float() / 255}, torch.arange(N) % 3) for part in ("val", "test")}
        self.pixels = image

    def loader(self):
        return batches(self.datasets["val"], self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = loader

    def raw_images(self, part, ids):
        return self.pixels[torch.as_tensor(ids)].permute(0, 2, 3, 1).numpy()


class Classifier(LightningModule):
    spec = Spec(sizes={"n_classes": 3}, classes=CLASSES)

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(SIDE * SIDE, 3))

    def training_step(self, batch, batch_index):
        loss = nn.functional.cross_entropy(self.network(batch["inputs"]["image"]), batch["target"])
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch, batch_index):
        return self.evaluate(batch, "val")

    def test_step(self, batch, batch_index):
        return self.evaluate(batch, "test")

    def evaluate(self, batch, part):
        probabilities = self.network(batch["inputs"]["image"]).softmax(-1)
        self.log(f"{part}/loss", -probabilities.gather(1, batch["target"][:, None]).log().mean())
        self.log(f"{part}/accuracy", (probabilities.argmax(-1) == batch["target"]).float().mean())
        return {"prediction": probabilities, "target": batch["target"], "index": batch["index"]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Regressor(Classifier):
    spec = Spec(sizes={"n_outputs": 1})

    def evaluate(self, batch, part):
        prediction = self.network(batch["inputs"]["image"])[:, 0]
        return {"prediction": prediction, "target": batch["target"].float(), "index": batch["index"]}


class Bigram(nn.Module):
    """The next token depends on the last one; with dropout, so that the training mode matters."""

    def __init__(self):
        super().__init__()
        self.table, self.dropout = nn.Embedding(5, 5), nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def advance(self, tokens, state):
        return self.frozen(self.dropout(self.table(tokens))), state


class Tokenizer:
    eos_id, textless_ids = 99, (4,)  # "e" is never written

    def encode(self, text):
        return ["abcde".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("abcde"[i] for i in ids)


class LanguageModel(LightningModule):
    spec = Spec(sizes={"vocab_size": 5, "context_length": 8})

    def __init__(self):
        super().__init__()
        self.network = Bigram()

    def training_step(self, batch, batch_index):
        logits, _ = self.network.advance(batch["inputs"]["tokens"], None)
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["target"].flatten())

    def validation_step(self, batch, batch_index):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Text(LightningDataModule):
    tokenizer = Tokenizer()

    def __init__(self):
        super().__init__()
        tokens = torch.arange(24).reshape(6, 4) % 5
        self.datasets = {"val": Samples({"tokens": tokens}, (tokens + 1) % 5)}

    def loader(self):
        return batches(self.datasets["val"], 2)

    train_dataloader = val_dataloader = loader


def trainer_for(path, callbacks, loggers=None, **settings):
    defaults = {"max_epochs": 2, "log_every_n_steps": 2, "accelerator": "cpu", "num_sanity_val_steps": 0}
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    loggers = [RunTensorBoard(save_dir=str(path))] if loggers is None else loggers
    return Trainer(callbacks=callbacks, logger=loggers, default_root_dir=str(path), **{**defaults, **quiet, **settings})


def events(path):
    return EventAccumulator(str(path), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()


def figures_callback(**settings):
    return Figures(**{"every_n_validations": 1, "most_share": 0.0, "n_mistakes": 20, **settings})


def samples_callback(**settings):
    defaults = {"prompt": "ab", "max_tokens": 12, "temperature": 0.8, "top_k": None, "top_p": None, "seed": 0}
    return TextSamples(**{**defaults, **settings})


class TestThroughput:
    def drive(self, seconds_a_step, validation_every, steps=12, shape=(4, 8), world=1):
        """A training of `steps` steps on a fake clock; returns the callback and what it logged."""
        clock, logged = Clock(), []
        monitor = Throughput(clock=clock)

        class Stub:
            world_size, log_every_n_steps, global_step = world, 4, 0
            device, fit_loop = torch.device("cpu"), SimpleNamespace(epoch_loop=None)

            def log_dict(self, values, **_):
                logged.extend(values.items())

        stub: Any = Stub()
        stub.lightning_module = stub
        batch = {"target": torch.zeros(shape)}
        for step in range(1, steps + 1):
            monitor.on_train_batch_start(stub, stub, batch, 0)
            clock.now += seconds_a_step
            stub.global_step = step
            monitor.on_train_batch_end(stub, stub, None, batch, 0)
            if step % validation_every == 0:
                monitor.on_validation_start(stub, stub)
                clock.now += 1000
        return monitor, logged

    def test_is_tokens_of_the_global_batch_by_training_time_without_validation(self):
        monitor, logged = self.drive(seconds_a_step=0.5, validation_every=3, world=2)
        assert (monitor.total, monitor.seconds, monitor.unit) == (12 * 32 * 2, 6.0, "tokens")
        assert monitor.per_second == 128.0
        assert logged == [("throughput/tokens_per_second", 128.0)] * 3

    def test_one_target_a_sample_counts_samples(self):
        monitor, _ = self.drive(seconds_a_step=0.25, validation_every=100, shape=(8,))
        assert (monitor.unit, monitor.per_second) == ("samples", 32.0)

    def test_goes_on_after_a_resume(self):
        first, _ = self.drive(seconds_a_step=1.0, validation_every=100)
        second = Throughput(clock=Clock())
        second.load_state_dict(first.state_dict())
        assert (second.total, second.seconds, second.per_second) == (first.total, first.seconds, first.per_second)

    def test_is_zero_before_the_first_step(self):
        assert Throughput().per_second == 0.0


def test_gradient_norm_is_that_before_clipping_and_is_logged_with_the_learning_rate(tmp_path):
    torch.manual_seed(0)
    task, data = Classifier(), Data()
    task.network[1] = nn.Identity()  # no dropout: the gradient can be computed again
    batch = next(iter(data.loader()))
    nn.functional.cross_entropy(task.network(batch["inputs"]["image"]), batch["target"]).backward()
    expected = torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]).norm()
    task.zero_grad()
    csv = MetricsFile(save_dir=str(tmp_path))
    trainer = trainer_for(
        tmp_path, [GradientNorm(), LearningRate()], [csv], max_steps=1, log_every_n_steps=1, gradient_clip_val=1e-3
    )
    trainer.fit(task, datamodule=data)
    (row,) = [r for r in read_metrics(csv.path) if r["optim/gradient_norm"]]
    assert float(row["optim/gradient_norm"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(row["optim/lr"]) == pytest.approx(0.1)


def test_groups_with_another_rate_have_their_own_name():
    assert learning_rates([{"lr": 1.0}, {"lr": 1.0}]) == {"optim/lr": 1.0}
    groups = [{"lr": 1.0}, {"lr": 0.1, "name": "backbone"}, {"lr": 0.2}]
    assert learning_rates(groups) == {"optim/lr": 1.0, "optim/lr_backbone": 0.1, "optim/lr_2": 0.2}


class TestProgress:
    METRICS = ("train/loss", "val/accuracy")

    def lines(self, tmp_path, capsys, tick, **settings):
        bar = PlainProgress(metrics=self.METRICS, every_seconds=5.0, clock=Clock(tick))
        trainer = trainer_for(tmp_path, [Throughput(clock=Clock(0.5)), bar], [], **settings)
        trainer.fit(Classifier(), datamodule=Data())
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\r" not in out
        return [line for line in out.splitlines() if re.match("step|epoch|validation", line)]

    def test_a_step_line_says_where_how_fast_and_how_long_still(self, tmp_path, capsys):
        lines = self.lines(tmp_path, capsys, tick=3.0, max_steps=16, max_epochs=-1)
        pattern = (
            r"step +\d+/16  +\d+%  train/loss [\d.]+(  val/accuracy [\d.e-]+)?  "
            r"[\d,.]+ samples/s  elapsed \d+:\d\d  left \d+:\d\d"
        )
        steps = [line for line in lines if line.startswith("step")]
        assert all(re.fullmatch(pattern, line) for line in steps), steps
        assert steps[-1].startswith("step 16/16  100%") and steps[-1].endswith("left 0:00")

    def test_epochs_are_counted_where_epochs_limit_the_run(self, tmp_path, capsys):
        lines = self.lines(tmp_path, capsys, tick=3.0, max_epochs=3)
        assert [line for line in lines if line.startswith("epoch")][-1].startswith("epoch 3/3  100%")

    def test_time_decides_not_the_number_of_steps(self, tmp_path, capsys):
        assert len(self.lines(tmp_path, capsys, tick=0.0, max_epochs=3)) == 1  # the end alone
        assert len(self.lines(tmp_path, capsys, tick=6.0, max_epochs=3)) > 12

    def test_a_long_validation_shows_life(self, tmp_path, capsys):
        assert "validation 3/4" in "\n".join(self.lines(tmp_path, capsys, tick=6.0))

    def test_a_resumed_run_estimates_from_its_own_steps(self, capsys):
        clock = Clock()
        bar = PlainProgress(metrics=(), every_seconds=5.0, clock=clock)

        class Stub:
            global_step, estimated_stepping_batches, callbacks = 100, 200, ()
            max_steps, callback_metrics = 200, {}

        stub: Any = Stub()
        bar.on_train_start(stub, stub)
        clock.now, stub.global_step = 10.0, 110
        bar.show_training(stub)
        assert capsys.readouterr().out == "step 110/200   55%  elapsed 0:10  left 1:30\n"

    def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(self, monkeypatch):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        assert isinstance(progress(metrics=(), every_seconds=5), LiveProgress)
        monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
        assert isinstance(progress(metrics=(), every_seconds=5), PlainProgress)

    def test_the_bar_runs_and_is_closed(self, tmp_path, capsys, monkeypatch):
        calls = []
        for name, call in (("start", Live.start), ("stop", Live.stop)):
            monkeypatch.setattr(Live, name, lambda live, *a, name=name, call=call: (calls.append(name), call(live, *a)))
        trainer = trainer_for(tmp_path, [LiveProgress(metrics=self.METRICS, every_seconds=0.0)], [])
        trainer.fit(Classifier(), datamodule=Data())
        assert "epoch 2/2" in capsys.readouterr().out
        assert calls.count("start") == calls.count("stop") > 0 and calls[-1] == "stop"

    def test_numbers_read_well(self):
        assert [number(x) for x in (3.21449, 0.98734, 12345.6, 0.0)] == ["3.214", "0.9873", "12,346", "0"]
        assert [duration(x) for x in (0, 52.4, 3849)] == ["0:00", "0:52", "1:04:09"]
        assert count("step", 7, 2400) == "step    7/2400" and count("step", 7, float("inf")) == "step 7"


class TestFigures:
    def test_a_classifier_leaves_figures_in_tensorboard_and_in_the_run(self, tmp_path):
        trainer = trainer_for(tmp_path, [figures_callback()])
        task, data = Classifier(), Data()
        trainer.fit(task, datamodule=data)
        trainer.test(task, datamodule=data, verbose=False)
        names = {f"{part}/{name}" for part in ("val", "test") for name in ("confusion_matrix", "curves", "mistakes")}
        assert set(events(tmp_path).Tags()["images"]) == names
        for name in names:
            picture = np.asarray(Image.open(tmp_path / "figures" / f"{name.replace('/', '_')}.png"))
            assert picture.std() > 10, f"{name} is empty"

    def test_a_regression_is_drawn_too(self, tmp_path):
        trainer_for(tmp_path, [figures_callback()]).fit(Regressor(), datamodule=Data())
        assert events(tmp_path).Tags()["images"] == ["val/predictions"]
        assert (tmp_path / "figures" / "val_predictions.png").stat().st_size > 5_000

    def test_data_without_images_give_a_table_of_mistakes(self, tmp_path, monkeypatch):
        monkeypatch.delattr(Data, "raw_images")
        trainer_for(tmp_path, [figures_callback(n_mistakes=3)]).fit(Classifier(), datamodule=Data())
        table = (tmp_path / "figures" / "val_mistakes.md").read_text().splitlines()
        assert len(table) == 2 + 3 and re.match(
            r"\| (zero|one|two) \| (zero|one|two) \| \d+% \| number \d+ \|", table[2]
        )

    @pytest.mark.parametrize("task", [Classifier, Regressor])
    @pytest.mark.parametrize(("share", "drawings"), [(1e9, 6), (0.25, 2), (0.0, 1)])
    def test_drawing_keeps_to_its_share_of_the_time(self, tmp_path, monkeypatch, task, share, drawings):
        callback, parts = figures_callback(most_share=share, clock=Clock(tick=1.0)), []
        shown = lambda trainer, part, name, *_: parts.append(part) if name in ("curves", "predictions") else None  # noqa: E731
        monkeypatch.setattr("quartet.callbacks.figures.show_figure", shown)
        trainer_for(tmp_path, [callback], [], max_epochs=6).fit(task(), datamodule=Data())
        assert parts == ["val"] * drawings

    def test_only_every_nth_validation(self, tmp_path, monkeypatch):
        callback, steps = figures_callback(most_share=1e9, every_n_validations=3, clock=Clock(tick=1.0)), []
        shown = lambda trainer, part, name, *_: steps.append(trainer.global_step) if name == "curves" else None  # noqa: E731
        monkeypatch.setattr("quartet.callbacks.figures.show_figure", shown)
        trainer_for(tmp_path, [callback], [], max_epochs=7).fit(Classifier(), datamodule=Data())
        assert steps == [12, 24, 28]  # after epochs 3 and 6, and at the end


class TestTextSamples:
    def test_a_sample_is_written_after_each_validation(self, tmp_path):
        trainer_for(tmp_path, [samples_callback()]).fit(LanguageModel(), datamodule=Text())
        files = sorted(path.name for path in (tmp_path / "samples").iterdir())
        assert files == ["step-000003.txt", "step-000006.txt"]
        assert re.fullmatch("ab[a-d]{12}\n", (tmp_path / "samples" / files[0]).read_text())
        assert "val/sample/text_summary" in events(tmp_path).Tags()["tensors"]

    def test_without_a_prompt_it_continues_the_validation_text(self, tmp_path):
        trainer_for(tmp_path, [samples_callback(prompt=None)], [], max_epochs=1).fit(LanguageModel(), datamodule=Text())
        assert (tmp_path / "samples" / "step-000003.txt").read_text().startswith("abcd")

    def test_training_with_samples_equals_training_without(self, tmp_path):
        """Dropout draws from the global generator, so a disturbed state or mode would change the weights."""
        weights = []
        for callbacks in ([], [samples_callback()]):
            torch.manual_seed(0)
            task = LanguageModel()
            trainer_for(tmp_path, callbacks, [], max_epochs=3).fit(task, datamodule=Text())
            weights.append(task.network.table.weight.detach().clone())
        assert torch.equal(*weights)

    def test_each_module_gets_its_own_mode_back(self):
        network = Bigram()
        with pytest.raises(RuntimeError), evaluating(network):
            assert not network.dropout.training
            raise RuntimeError
        assert network.training and network.dropout.training and not network.frozen.training

    def test_other_tasks_write_nothing(self, tmp_path):
        trainer_for(tmp_path, [samples_callback()], [], max_epochs=1).fit(Classifier(), datamodule=Data())
        assert not (tmp_path / "samples").exists()


class TestTensorBoard:
    def test_train_and_validation_share_a_chart(self, tmp_path):
        trainer_for(tmp_path, [Overlay(), LearningRate()]).fit(Classifier(), datamodule=Data())
        written = events(tmp_path).Tensors("custom_scalars__config__")[-1]
        found = Layout.FromString(written.tensor_proto.string_val[0])
        charts = {chart.title: list(chart.multiline.tag) for category in found.category for chart in category.chart}
        assert charts == {
            "loss": ["^train/loss$", "^val/loss$"],
            "accuracy": ["^val/accuracy$"],
            "learning rate": ["^optim/lr"],
        }

    def test_the_layout_has_existing_tags_only_and_loss_first(self):
        charts = layout(["val/accuracy", "val/loss", "train/loss", "val_per_class/f1/one", "epoch"])
        assert list(charts) == ["train and validation"]
        assert list(charts["train and validation"]) == ["loss", "accuracy"]
        assert layout([]) == {}

    def test_hparams_are_read_back_with_the_final_metrics(self, tmp_path):
        logger = RunTensorBoard(save_dir=str(tmp_path))
        trainer_for(tmp_path, [], [logger]).fit(Classifier(), datamodule=Data())
        hparams = {"seed": 1, "model": {"dropout": 0.1, "hidden": [4, 4], "bias": True, "name": "x", "pad": None}}
        write_hparams(logger, hparams, {"val/loss": 0.25, "test/accuracy": 0.75}, step=8)
        read = events(tmp_path)
        assert read.Scalars("result/val/loss")[-1].value == 0.25
        assert read.Scalars("result/test/accuracy")[-1].value == 0.75
        content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        found = HParams.FromString(content).session_start_info.hparams
        values = {name: value.number_value or value.string_value for name, value in found.items()}
        expected = {
            "model.dropout": 0.1,
            "model.hidden": "[4, 4]",
            "model.bias": "true",
            "model.name": "x",
            "seed": 1.0,
        }
        assert values == expected
        content = read.SummaryMetadata("_hparams_/experiment").plugin_data.content
        metrics = [info.name.tag for info in HParams.FromString(content).experiment.metric_infos]
        assert metrics == ["result/val/loss", "result/test/accuracy"]
        assert "hp_metric" not in read.Tags()["scalars"] and not (tmp_path / "hparams.yaml").exists()

    def test_a_run_without_metrics_has_the_columns_of_the_others(self, tmp_path):
        logger = RunTensorBoard(save_dir=str(tmp_path))
        write_hparams(logger, {"seed": 1}, {}, known=["val/loss", "val/accuracy"])
        content = events(tmp_path).SummaryMetadata("_hparams_/experiment").plugin_data.content
        metrics = [info.name.tag for info in HParams.FromString(content).experiment.metric_infos]
        assert metrics == ["result/val/loss", "result/val/accuracy"]

    def test_another_logger_is_left_alone(self, tmp_path):
        write_hparams(MetricsFile(save_dir=str(tmp_path)), {"a": 1}, {"val/loss": 1.0})
        assert list(tmp_path.iterdir()) == []

    def test_flatten_keeps_numbers_and_texts(self):
        assert flatten({"a": {"b": {"c": 1}}, "d": "e", "f": None, "g": False}) == {"a.b.c": 1, "d": "e", "g": "false"}


class TestMetricsFile:
    def test_a_new_name_adds_a_column(self, tmp_path):
        log = MetricsFile(save_dir=str(tmp_path))
        log.log_metrics({"train/loss": 2.0}, step=9)
        log.save()
        log.log_metrics({"val/loss": 1.5}, step=9)
        log.save()
        assert read_metrics(log.path) == [
            {"step": "9", "train/loss": "2.0", "val/loss": ""},
            {"step": "9", "train/loss": "", "val/loss": "1.5"},
        ]

    def test_a_resumed_run_continues_and_replaces_what_came_after_its_checkpoint(self, tmp_path):
        first = MetricsFile(save_dir=str(tmp_path))
        for step in range(0, 50, 10):
            first.log_metrics({"train/loss": 100.0 + step, "old": 1.0}, step=step)
        first.save()
        second = MetricsFile(save_dir=str(tmp_path))
        second.truncate_from(25)
        for step in range(30, 60, 10):
            second.log_metrics({"train/loss": 0.0}, step=step)
        second.save()
        rows = read_metrics(second.path)
        assert [int(row["step"]) for row in rows] == [0, 10, 20, 30, 40, 50]
        assert [float(row["train/loss"]) for row in rows] == [100.0, 110.0, 120.0, 0.0, 0.0, 0.0]
        assert rows[0]["old"] == "1.0" and rows[-1]["old"] == ""

    def test_training_logs_everything_once(self, tmp_path):
        log = MetricsFile(save_dir=str(tmp_path))
        trainer_for(tmp_path, [], [log]).fit(Classifier(), datamodule=Data())
        rows = read_metrics(log.path)
        assert [int(row["step"]) for row in rows if row["train/loss"]] == [1, 3, 5, 7]
        assert [int(row["step"]) for row in rows if row["val/loss"]] == [3, 7]
