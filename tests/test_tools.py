"""What helps before a training: range test, sizes of a batch, layer table, profilers, FLOPs."""

from __future__ import annotations

import csv
import gzip
import json
import shlex

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from torch import nn

from quartet import build
from quartet.commands.train import create_and_train
from quartet.engine import batch_size, range_test, summary
from quartet.engine.trial import trial_data
from quartet.run import Run
from quartet.system.flops import StepFlops, counted, peak_flops, without_weights

TINY = ["model=mlp", "model.hidden=[8]", "data.batch_size=16", "trainer.accelerator=cpu"]
SHORT = ["trainer.max_epochs=1", "callbacks.figures=null", "callbacks.data_report=null", "test=false"]
FAMILIES = {
    "transformer": [
        "model.d_model=16",
        "model.n_layers=2",
        "model.n_heads=2",
        "model.d_ff=32",
        "data.context_length=32",
    ],
    "rnn": ["model.d_hidden=16", "data.context_length=32"],
    "image_small": ["model.widths=[4,8]"],
    "mlp": ["model.hidden=[16]"],
}


def checked(config):
    with open_dict(config):
        config.pop("sweep")
    build.check(config)
    return config


# the range test


def test_the_range_test_is_the_same_for_the_same_seed_and_leaves_the_rates_of_groups_in_proportion(
    compose, monkeypatch
):
    seen = []
    start = range_test.RangeTest.on_train_batch_start

    def spy(self, trainer, *rest):
        start(self, trainer, *rest)
        seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    monkeypatch.setattr(range_test.RangeTest, "on_train_batch_start", spy)
    config = checked(compose(*TINY, "optimizer=muon", "optimizer.adamw_scale=2", "trainer.accumulate_grad_batches=2"))
    rates, losses = range_test.range_test(config)
    again = range_test.range_test(config)
    assert (again[0] == rates).all() and (again[1] == losses).all()
    assert len(rates) > 60 and np.diff(np.log(rates)) == pytest.approx(np.log(rates[1] / rates[0]))
    # one rate for both batches of a step; AdamW's is twice that of Muon
    assert seen[0] == seen[1] != seen[2]
    assert {round(max(of_groups) / min(of_groups), 6) for of_groups in seen} == {2.0}


def test_the_suggestion_lies_before_the_lowest_loss_and_does_not_depend_on_the_scale_of_the_loss():
    rates = np.geomspace(1e-6, 1, 100)
    noise = 0.01 * np.sin(np.arange(100) * 7.0)
    losses = 1 - 0.8 / (1 + np.exp(-3 * np.log10(rates / 1e-3))) + 50 * rates**2 + noise
    suggestion = range_test.suggest(rates, losses)
    assert 1e-3 < suggestion < rates[losses.argmin()]
    assert range_test.suggest(rates, 1000 * losses) == suggestion == range_test.suggest(rates, losses + 5)


def test_a_loss_that_does_not_fall_gives_no_suggestion():
    rates, noise = np.geomspace(1e-6, 1, 100), np.sin(np.arange(100) * 7.0)
    with pytest.raises(ValueError, match="did not fall at any rate"):
        range_test.suggest(rates, 1 + 0.1 * noise)
    with pytest.raises(ValueError, match="exploded within 4 steps"):
        range_test.suggest(rates[:3], noise[:3])


def test_a_step_that_an_epoch_cannot_fill_is_named(compose):
    with pytest.raises(ValueError, match=r"a step takes 1600 samples .* 455 to train on"):
        range_test.range_test(checked(compose(*TINY, "trainer.accumulate_grad_batches=100")))


def test_find_lr_prints_a_command_that_trains_and_leaves_no_run(script, outputs, compose):
    process = script(
        "train", *TINY, "trainer.max_steps=4", "find_lr=true", "optimizer.lr=1e-3", "callbacks=none", "test=false"
    )
    assert process.returncode == 0, process.stderr
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("train with: ")]
    words = shlex.split(line.split("train.py ")[1])
    assert "find_lr=true" not in words and "optimizer.lr=1e-3" not in words and words[-1].startswith("optimizer.lr=")
    (picture,) = outputs.rglob("losses.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and not list(outputs.rglob("config.yaml"))
    with pytest.raises(FileNotFoundError, match="no trained run"):
        Run.open("latest")
    build.check(compose(*words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "find_lr=true", "seed=0,1"], "leave out -m"),
        (["-m", "find_lr=false,true"], "leave out -m"),
        (["find_lr=true", "find_batch_size=true"], "two questions"),
        (["find_lr=perhaps"], "find_lr must be true or false"),
        (["find_batch_size=true", "resume=latest"], "leave out find_batch_size=true"),
    ],
)
def test_what_cannot_be_asked_is_one_line(script, outputs, words, message):
    process = script("train", *words, *TINY)
    assert process.returncode == 1 and process.stderr.count("\n") == 1 and message in process.stderr
    assert not list(outputs.rglob("*.*"))


# sizes of a batch


def test_sizes_double_until_all_there_is(compose, monkeypatch):
    monkeypatch.setattr(batch_size, "SECONDS", 0.0)
    sizes, reason = batch_size.try_sizes(checked(compose(*TINY, "trainer.accumulate_grad_batches=2")), print)
    # batch normalisation needs two rows, and a step takes two batches of the 455 rows
    assert [size.batch_size for size in sizes] == [2, 4, 8, 16, 32, 64, 128, 227] and "454 is all" in reason
    assert all(size.per_second == pytest.approx(2 * size.batch_size / size.step_seconds) for size in sizes)
    assert sizes[0].steps_per_epoch == 113 and sizes[-1].steps_per_epoch == 1


def test_out_of_memory_ends_the_search(compose, monkeypatch):
    def forward(self, **inputs):
        if len(inputs["numeric"]) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, **inputs)

    monkeypatch.setattr(batch_size, "SECONDS", 0.0)
    network = build.locate("quartet.models.mlp.MLP")
    original = network.forward
    monkeypatch.setattr(network, "forward", forward)
    sizes, reason = batch_size.try_sizes(checked(compose(*TINY)), print)
    assert [size.batch_size for size in sizes] == [2, 4, 8] and "16 does not fit" in reason


def test_a_cpu_is_not_filled_up(compose, monkeypatch):
    """Linux would kill the process; the size after that which took 3 GB more is not tried with 7 GB left."""
    memory = iter([1 * 2**30, 2 * 2**30, 5 * 2**30])
    monkeypatch.setattr(batch_size, "SECONDS", 0.0)
    monkeypatch.setattr(batch_size, "peak_memory", lambda _: next(memory))
    monkeypatch.setattr(batch_size, "free_memory", lambda: 7 * 2**30)
    sizes, reason = batch_size.try_sizes(checked(compose(*TINY)), print)
    assert [size.batch_size for size in sizes] == [2, 4, 8] and "16 would take about 6.0 GB" in reason


def test_the_smallest_size_that_is_about_as_fast_is_suggested():
    sizes = [batch_size.Size(n, speed, "samples", 1.0, 1, 0) for n, speed in ((8, 10), (16, 96), (32, 100), (64, 80))]
    assert batch_size.suggest(sizes).batch_size == 16


# the layer table and FLOPs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_columns_of_the_layer_table_add_up(compose, small_text, family):
    config = checked(compose(f"model={family}", *FAMILIES[family], "data.batch_size=4"))
    data = trial_data(config)
    network = build.build_task(config, data.spec).network
    rows = [line.split() for line in summary.layer_table(network, data.first_inputs(1)).splitlines()[1:]]
    numbers = [[int(word.replace(",", "")) for word in row[2:] if word.replace(",", "").isdecimal()] for row in rows]
    total = counted(
        lambda: without_weights(network).eval()(**{k: x.to("meta") for k, x in data.first_inputs(1).items()})
    )[0]
    n_parameters = sum(p.numel() for p in network.parameters())
    assert sum(map(sum, numbers)) == n_parameters + total and total > 0
    # forward and backward: the products with respect to inputs and weights
    inputs = data.first_inputs(4)
    step = StepFlops(network).of(inputs, network)
    assert 2 * 4 * total < step <= 3.01 * 4 * total


def test_recurrent_layers_are_counted_by_hand():
    """4 gates · (D + H) · H products for each of B · T positions; the fused kernels would count as nothing."""
    for layers, directions in ((1, 1), (2, 2)):
        lstm = nn.LSTM(6, 5, num_layers=layers, bidirectional=directions == 2, batch_first=True)
        widths = [6, *[5 * directions] * (layers - 1)]
        by_hand = sum(2 * 3 * 7 * 4 * 5 * (width + 5) * directions for width in widths)
        twin = without_weights(lstm)
        assert counted(lambda twin=twin: twin(torch.empty(3, 7, 6, device="meta")))[0] == by_hand
        shapes = [lstm(torch.randn(3, 7, 6)), twin(torch.empty(3, 7, 6, device="meta"))]
        assert shapes[0][0].shape == shapes[1][0].shape and shapes[0][1][1].shape == shapes[1][1][1].shape


def test_frozen_weights_cost_no_backward_pass_and_compiling_changes_nothing():
    network = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    inputs = {"input": torch.randn(8, 10)}
    counter = StepFlops(network)
    forward, whole = 2 * 8 * (10 * 20 + 20 * 5), counter.of(inputs, network)
    assert whole == 2 * forward + 2 * 8 * 20 * 5  # the first layer's inputs need no gradient
    network[0].requires_grad_(False)
    assert counter.of(inputs, network) == forward + 2 * 8 * 20 * 5
    network[0].requires_grad_(True)
    network.compile()
    assert StepFlops(network).of(inputs, network) == whole


def test_summary_is_printed_and_kept(compose, capsys):
    run, _ = create_and_train(compose(*TINY, *SHORT, "summary=true"))
    text = (run.directory / "summary.txt").read_text(encoding="utf-8")
    assert all(line.strip() in capsys.readouterr().out for line in text.splitlines()[:1])
    assert "FLOPs of a step of 16 samples" in text and "BatchNorm1d" in text


class Looks(nn.Module):
    """Its shapes depend on values, which the meta device does not have."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x[x[:, 0] > float(x.mean())])


def test_a_network_that_looks_at_values_has_a_table_too():
    table = summary.layer_table(Looks(), {"x": torch.eye(4)})
    assert "linear" in table and "1×2" in table and "16" in table


def test_teraflops_are_flops_by_time(compose):
    run, _ = create_and_train(compose(*TINY, *SHORT, "trainer.log_every_n_steps=4"))
    with open(run.directory / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("throughput/samples_per_second")]
    of_sample = {
        round(1e12 * float(r["throughput/teraflops_per_second"]) / float(r["throughput/samples_per_second"]))
        for r in rows
    }
    # 30·8 + 8·2 products forward; backward all of them again, and those of the second layer for its inputs
    assert len(rows) > 5 and of_sample == {2 * (30 * 8 + 8 * 2) * 2 + 2 * 8 * 2}
    assert "throughput/model_flops_utilisation" not in rows[0], "the peak of a CPU is not known"


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989),
        ("NVIDIA H100 PCIe", "16-mixed", 756),
        ("NVIDIA A100-SXM4-40GB", "32-true", 19.5),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "32-true", None),
        ("Tesla V100-SXM2-16GB", "16-mixed", 125),
        ("Tesla T4", "bf16-mixed", None),
        ("NVIDIA L40S", "bf16-true", 362),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed", None),
        ("Something else", "32-true", None),
    ],
)
def test_peaks_are_those_of_the_device_and_its_precision(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = peak_flops(torch.device("cuda", 0), precision, nn.Linear(1, 1))
    assert found == (None if peak is None else pytest.approx(peak * 1e12))
    assert peak_flops(torch.device("cpu"), precision, nn.Linear(1, 1)) is None


def test_convolutions_use_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak_flops(torch.device("cuda", 0), "32-true", nn.Conv2d(1, 1, 1)) == 156e12


# profilers


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_a_profile_is_written_and_its_head_shown(compose, capsys, profiler):
    run, result = create_and_train(compose(*TINY, *SHORT, f"trainer.profiler={profiler}", "test=true"))
    text, shown = (run.directory / "profile.txt").read_text(encoding="utf-8"), capsys.readouterr().out
    assert result["status"] == "completed" and text.startswith(f"trainer.profiler={profiler}: ")
    heads = shown.split("profile.txt\n")[1].splitlines()[:12]
    assert len([line for line in heads if "%" in line]) == 10 and "Profiler Report" not in shown
    shares = [float(line.rsplit(maxsplit=1)[1].rstrip("%")) for line in heads if "%" in line]
    assert shares == sorted(shares, reverse=True)
    trace = run.directory / "trace.json.gz"
    assert trace.exists() == (profiler == "pytorch")
    if trace.exists():
        assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_a_wrong_profiler_is_named_with_what_was_meant(compose):
    with pytest.raises(ValueError, match=r"trainer\.profiler must be one of .*; did you mean pytorch\?"):
        build.check(compose("model=mlp", "trainer.profiler=pytroch"))


def test_what_watches_a_run_is_not_part_of_its_signature(compose):
    from quartet.run import signature

    plain = signature(compose("model=mlp"))
    assert signature(compose("model=mlp", "summary=true", "trainer.profiler=simple")) == plain
    assert signature(compose("model=mlp", "optimizer.lr=1")) != plain
