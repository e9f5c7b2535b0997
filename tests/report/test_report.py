"""Whole reports, of sweeps that were never trained; and one of runs that were."""

import csv
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image

from quartet.report import report_runs, report_sweep
from quartet.run import PROJECT


def page(directory, name="report.html"):
    return (directory / name).read_text(encoding="utf-8")


def words(directory):
    """The page as one reads it."""
    return unescape(
        " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page(directory), flags=re.S)).split())
    )


def test_five_seeds_of_two_settings(seeds):
    summary = report_sweep(seeds).summary
    assert "best: optimizer.lr=0.003: val/loss 0.424 ± 0.021 (mean ± std, n = 5" in summary
    assert "second: optimizer.lr=0.001, difference -0.086 in 5 pairs, p < 0.001" in summary
    assert "runs: 10 completed" in summary and f"report: {seeds / 'report.html'}" in summary
    text = words(seeds)
    for expected in ("0.424 ± 0.021", "0.510 ± 0.016", "0.398 to 0.450", "-0.086", "-0.109 to -0.063"):
        assert expected in text, expected
    assert "Wilcoxon's test needs six pairs" in text and "say nothing about other data" in text


def test_the_winner_s_commands(seeds):
    report_sweep(seeds)
    commands = re.findall(r"```\n(python .*?)\n```", page(seeds, "report.md"))
    assert shlex.split(commands[0])[2:] == ["-m", "model=mlp", "optimizer.lr=0.003", "seed=0,1,2,3,4"]
    assert shlex.split(commands[1])[2:] == ["model=mlp", "seed=0", "optimizer.lr=0.003"]


def test_one_row_for_each_run(seeds):
    (seeds / "9" / "result.json").unlink()
    report_sweep(seeds)
    rows = list(csv.DictReader(io.StringIO(page(seeds, "runs.csv"))))
    assert [row["run"] for row in rows] == [str(n) for n in range(10)]
    assert (rows[3]["val/loss"], rows[3]["optimizer.lr"], rows[3]["seed"], rows[3]["steps"]) == (
        "0.45",
        "0.003",
        "1",
        "20",
    )
    assert rows[3]["command"].startswith("python scripts/train.py model=mlp") and rows[9]["status"] == "unfinished"
    assert (rows[3]["throughput_per_second"], rows[3]["peak_memory_bytes"], rows[3]["parameters"]) == (
        "10.0",
        "1073741824",
        "100",
    )


class Addresses(HTMLParser):
    """Whatever a page may fetch or lead to, and the images without a description."""

    def __init__(self):
        super().__init__()
        self.links, self.sources, self.undescribed = [], [], 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[key] for key in ("href", "action", "data", "poster", "srcset") if key in values]
        self.sources += [values["src"]] if "src" in values else []
        self.undescribed += tag == "img" and not values.get("alt")
        assert tag not in ("script", "link", "iframe", "object", "base")


def test_the_page_needs_nothing_but_itself(seeds):
    report_sweep(seeds)
    text, found = page(seeds), Addresses()
    found.feed(text)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert found.sources and all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert set(found.links) == {f"{n}/" for n in range(10)}
    assert not found.undescribed
    assert "@media print" in text and text.count("<caption>") == text.count("<table>")


def test_the_figures_are_files_too(make_sweep):
    sweep = make_sweep([(seed + lr, {"seed": seed, "optimizer.lr": lr}) for seed in (0, 1) for lr in (0.1, 0.2)])
    report_sweep(sweep)
    names = re.findall(r"\]\((figures/\S+?)\)", page(sweep, "report.md"))
    assert {"figures/ranking.png", "figures/effects.png", "figures/curves.png", "figures/time.png"} <= set(names)
    assert all(Image.open(sweep / name).width == 1200 for name in names)


def test_text_from_outside_stays_text(make_sweep, sketches):
    sweep = make_sweep([(1.0, {"data.name": "<script>1</script>"}), (None, {"data.name": "b"}, "failed")])
    (sweep / "1" / "error.txt").write_text("ValueError: <img src=x onerror=alert(1)> | `")
    report_sweep(sweep)
    assert "<script" not in page(sweep) and "<img src=x" not in page(sweep)
    assert "&lt;script&gt;" in page(sweep) and "\\<img src=x onerror=alert(1)\\> \\| \\`" in page(sweep, "report.md")


ODD = {
    "no runs": ([], "Nothing is completed with a finite val/loss: no runs."),
    "one run": ([(1.0, {})], "val/loss 1 (n = 1)"),
    "all failed": ([(None, {}, "failed")] * 2, "Nothing is completed with a finite val/loss: 2 failed."),
    "all pruned": (
        [(1.0, {"seed": n}, "pruned") for n in range(2)],
        "Nothing is completed with a finite val/loss: 2 pruned.",
    ),
    "all going": ([(1.0, {}, "unfinished")], "still running, or killed"),
    "no numbers": ([(float("nan"), {}), (float("inf"), {}), (None, {})], "no finite value of the objective"),
    "a strange status": ([(1.0, {}, "eaten")], "1 eaten"),
    "equal": ([(1.0, {"seed": s, "model.dropout": d}) for s in (0, 1) for d in (0, 1)], "there is nothing to test"),
    "lists": ([(n, {"model.hidden": [n, n]}) for n in (1, 2)], "hidden=[1, 1]"),
    "a mixed parameter": ([(n, {"model.dropout": v}) for n, v in enumerate([0.1, None, "auto", True])], "dropout=0.1"),
    "wide": ([(10.0**n, {"model.dropout": n}) for n in range(-3, 9)], "model.dropout=-3"),
    "negative": ([(-(10.0**n), {"model.dropout": n}) for n in range(12)], "model.dropout=11"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_contents_get_a_report(make_sweep, name):
    runs, expected = ODD[name]
    sweep = make_sweep(runs)
    summary = report_sweep(sweep).summary
    assert expected in summary + words(sweep)
    assert (sweep / "runs.csv").is_file() and (sweep / "report.md").is_file()


@pytest.mark.parametrize("text", ["", "{}", "[", '{"objectives": {"val/none": "max"}}'])
def test_a_damaged_plan_is_survived(make_sweep, sketches, text):
    sweep = make_sweep([(1.0, {"seed": n}) for n in range(2)])
    (sweep / "sweep.json").write_text(text)
    assert "2 completed" in report_sweep(sweep).summary


def test_damaged_runs_are_survived(make_sweep, sketches):
    sweep = make_sweep([(1.0, {})] * 4)
    (sweep / "0" / "config.yaml").write_text("{")
    (sweep / "1" / "result.json").write_text(
        '{"status": "completed", "metrics": null, "seconds": "long", "throughput": 3}'
    )
    (sweep / "2" / "metrics.csv").write_bytes(b"\xff\x00step")
    (sweep / "2" / "trial.json").write_text('{"overrides": ["run.name=\\ud800"]}')  # no text that UTF-8 could write
    (sweep / "3" / "environment.json").write_text('{"packages": [], "git": 1, "command": 7}')
    assert "damaged" in report_sweep(sweep).summary


def test_pruned_runs(make_sweep):
    runs = [
        (n / 10, {"optimizer.lr": 10.0**-n, "model.dropout": n % 3}, "pruned" if n % 2 else "completed")
        for n in range(30)
    ]
    sweep = make_sweep(
        runs, {"optimizer.lr": "tag(log,interval(1e-30,1))", "model.dropout": "0,1,2"}, pruner="asha", sampler="tpe"
    )
    assert "15 completed, 15 pruned" in report_sweep(sweep).summary
    text = words(sweep)
    assert "Pruned runs" in text and "Crosses: pruned runs" in text and "One seed for each setting" in text
    assert "Importance of each parameter" in text and (sweep / "figures" / "parallel.png").is_file()


def test_several_objectives_have_a_front_and_no_winner(make_sweep):
    runs = [(x, {"model.dropout": x}, "completed", {"val_accuracy": y}) for x, y in ((1, 0.5), (2, 0.9), (3, 0.7))]
    sweep = make_sweep(runs, {"model.dropout": "1,2,3"}, objectives={"val/loss": "min", "val/accuracy": "max"})
    summary = report_sweep(sweep).summary
    assert "On the Pareto front of val/loss, val/accuracy: 2 of 3 settings." in summary and "best:" not in summary
    assert "  model.dropout=1: val/loss 1, val/accuracy 0.5\n" in summary
    assert "On the front: model.dropout=1; model.dropout=2" in page(sweep)
    with pytest.raises(ValueError, match=r"no single winner; choose from the Pareto front"):
        report_sweep(sweep, test_winner=True)


def test_other_data_are_not_compared_in_pairs(make_sweep, sketches):
    runs = [
        (seed + len(name), {"seed": seed, "data.source.name": name}) for seed in (0, 1) for name in ("wine", "digits")
    ]
    sweep = make_sweep(runs)
    summary = report_sweep(sweep).summary
    assert "second" not in summary and "they were validated on different samples" in words(sweep)


@pytest.mark.parametrize(
    "key, expected",
    [("task.loss", "val/loss is not the same quantity"), ("data.tokenizer", "compare with monitor.metric")],
)
def test_other_losses_do_not_compare(make_sweep, sketches, key, expected):
    sweep = make_sweep([(1.0, {key: "a"}), (2.0, {key: "b"})])
    report_sweep(sweep)
    assert expected in words(sweep)


def test_a_best_moment_that_did_not_last_is_told(make_sweep, sketches):
    sweep = make_sweep([(0.1, {})])
    (sweep / "0" / "metrics.csv").write_text("step,val/loss\n9,0.1\n19,0.9\n")
    report_sweep(sweep)
    assert "Run 0 had val/loss 0.1 at its best validation and 0.9 at its last" in words(sweep)


# the test part


@pytest.fixture
def evaluations(monkeypatch):
    """The runs that were tested, instead of testing them."""
    import quartet.commands.evaluate

    seen = []

    def evaluate(run, split):
        seen.append((run.directory.name, split))
        return {"test/loss": 1.0 + len(seen) / 10}

    monkeypatch.setattr(quartet.commands.evaluate, "evaluate", evaluate)
    return seen


def test_the_winner_is_tested_once(seeds, evaluations, capsys):
    report_sweep(seeds)
    assert not evaluations and "test/loss" not in page(seeds)
    for _ in range(2):
        assert "test: test/loss 1.30 ± 0.16 (n = 5)" in report_sweep(seeds, test_winner=True).summary
        assert [name for name, split in evaluations] == ["1", "3", "5", "7", "9"]
        assert "optimizer.lr=0.003 was scored on the test part once" in words(seeds) and "1.30 ± 0.16" in words(seeds)
    assert "tested before" in capsys.readouterr().out
    assert json.loads((seeds / "test.json").read_text())["setting"] == "optimizer.lr=0.003"


def test_another_winner_is_not_tested(seeds, evaluations):
    report_sweep(seeds, test_winner=True)
    known = json.loads((seeds / "test.json").read_text())
    (seeds / "test.json").write_text(json.dumps({**known, "setting": "optimizer.lr=7"}))
    report_sweep(seeds, test_winner=True)
    assert len(evaluations) == 5 and "The winner is optimizer.lr=0.003 by now. It is not tested" in words(seeds)


def test_a_damaged_record_of_the_test_is_no_reason_to_test_again(seeds, evaluations):
    (seeds / "test.json").write_text("{")
    report_sweep(seeds)
    with pytest.raises(ValueError, match=r"test.json is damaged; restore it"):
        report_sweep(seeds, test_winner=True)
    assert not evaluations


def test_nothing_to_test(make_sweep, sketches):
    with pytest.raises(ValueError, match="has no completed run to test"):
        report_sweep(make_sweep([(1.0, {}, "failed")]), test_winner=True)


def test_runs_that_were_tested_already_are_not_tested_again(make_run, sketches, tmp_path, evaluations):
    for seed in (0, 1):
        make_run(tmp_path / "runs" / str(seed), 1.0, {"seed": seed}, test_loss=2.0)
    report_runs(str(tmp_path / "runs" / "*"), tmp_path / "report", test_winner=True)
    assert not evaluations and "2 ± 0" in words(tmp_path / "report")


# the command


@pytest.fixture
def main(monkeypatch, capsys):
    """main("sweep=latest") -> exit code, stdout and stderr of scripts/report.py."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it, for Hydra to raise
        try:
            runpy.run_path(str(PROJECT / "scripts" / "report.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_the_command_for_a_sweep(seeds, main):
    code, out, _ = main("sweep=latest")
    assert code == 0 and "best: optimizer.lr=0.003" in out and (seeds / "report.html").is_file()
    code, out, _ = main(f"sweep={seeds}")
    assert code == 0


def test_the_command_for_any_runs(make_run, sketches, tmp_path, outputs, main):
    for seed in (0, 1):
        make_run(tmp_path / "some" / "deep" / str(seed), seed, {"seed": seed})
    code, out, _ = main(f"runs='{tmp_path}/some/*/*'", f"output={tmp_path / 'here'}")
    assert code == 0 and "n = 2" in out and 'href="../some/deep/0/"' in page(tmp_path / "here")
    code, out, _ = main(f"runs='{tmp_path}/some/**'")
    assert code == 0 and len(list((outputs / "reports").glob("*/report.html"))) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sweep=nowhere"], "error: sweep=nowhere is not a sweep"),
        (["runs='nothing/*'"], "error: runs=nothing/* matches no run directory"),
        (["output=here"], "error: output=here goes with runs=<glob>"),
        (["swep=latest"], "error: swep: no such key, did you mean sweep?"),
    ],
)
def test_mistakes_are_one_line(main, arguments, message):
    code, _, err = main(*arguments)
    assert code == 1 and message in err and "Traceback" not in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("argument", ["--help", "--cfg=job"])
def test_help_imports_nothing_heavy(argument):
    heavy = "{'torch', 'pandas', 'matplotlib', 'scipy', 'optuna', 'numpy'} & set(sys.modules)"
    start = f"import sys; sys.path.append('scripts'); sys.argv[1:] = ['{argument}']"
    code = f"{start}; import report; report.main(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "test_winner: false" in done.stdout and done.stdout.rstrip().endswith("set()")


# of runs that were trained


@pytest.fixture
def trained(compose, outputs):
    """A cross-validation in three folds."""
    from quartet.commands.train import create_and_train

    sweep, silent = outputs / "sweeps" / "folds", [f"callbacks.{n}=null" for n in ("figures", "data_report", "samples")]
    for fold in range(3):
        words = ["model=mlp", "data=wine", "data.folds=3", f"data.fold={fold}", "trainer.max_epochs=2", "logger=none"]
        config = compose(*words, *silent, f"run.dir={sweep / str(fold)}")
        config.test = False
        create_and_train(config)
    return sweep


def pooled(sweep):
    """Targets and probabilities of the validation samples, each by its own fold's checkpoint."""
    import torch

    from quartet import build
    from quartet.engine.weights import load_checkpoint
    from quartet.run import Run

    outputs = []
    for fold in range(3):
        run = Run(sweep / str(fold))
        data = build.build_data(run.config, run.read("preprocessing.json"))
        data.setup()
        task = build.build_task(run.config, data.spec)
        load_checkpoint(task, run.best_checkpoint)
        task.eval()
        with torch.no_grad():
            outputs += [task.step(batch, "val")[1] for batch in data.val_dataloader()]
    return (torch.cat([output[name] for output in outputs]).numpy() for name in ("target", "prediction"))


def test_out_of_fold_metrics_are_of_the_pooled_predictions(trained, sketches, evaluations):
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    report_sweep(trained, test_winner=True)
    target, probabilities = pooled(trained)
    table = re.search(r"seed 0: (\d+) samples in 3 folds\n\n(.*?)\n\n", page(trained, "report.md"), re.S)
    assert table and int(table[1]) == len(target) == 160  # 178 wines without the test part
    rows = dict(re.findall(r"\| val/(\w+)(?:\\_\w+)? \| (\S+) \|", table[2]))
    assert float(rows["loss"]) == pytest.approx(log_loss(target, probabilities), rel=1e-3)
    assert float(rows["accuracy"]) == pytest.approx(accuracy_score(target, probabilities.argmax(1)), rel=1e-3)
    assert float(rows["auroc"]) == pytest.approx(roc_auc_score(target, probabilities, multi_class="ovr"), rel=1e-3)
    assert [name for name, _ in evaluations] == ["0", "1", "2"]

    (trained / "1" / "checkpoints" / "best.ckpt").write_bytes(b"")
    report_sweep(trained)
    assert "not computed" in words(trained)


@pytest.mark.parametrize(
    "name", ["report.md", ".report.md", "report.html", ".report.html", "runs.csv", "figures/ranking.png"]
)
def test_a_link_in_a_stranger_s_sweep_is_replaced_and_not_followed(make_sweep, tmp_path, name):
    sweep, victim = make_sweep([(1.0,), (2.0,)]), tmp_path / "victim"
    victim.write_text("mine")
    (sweep / name).parent.mkdir(exist_ok=True)
    (sweep / name).symlink_to(victim)
    report_sweep(sweep)
    assert victim.read_text() == "mine" and (sweep / "report.html").stat().st_size > 1000
    assert not list(sweep.glob(".*.????????")), "temporary files"


def test_a_folder_of_figures_that_leads_elsewhere(make_sweep, tmp_path):
    sweep = make_sweep([(1.0,), (2.0,)])
    (tmp_path / "victim").mkdir()
    (sweep / "figures").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="figures is a link; put a folder in its place"):
        report_sweep(sweep)
    assert not list((tmp_path / "victim").iterdir())


def test_a_spreadsheet_takes_no_text_for_a_formula(make_sweep, sketches):
    words = ['=HYPERLINK("http://192.0.2.1")', "@SUM(1)", "+1+1", "-x", "\t=1", "-0.5", "plain"]
    sweep = make_sweep([(1.0, {"optimizer.lr": word}) for word in words], {"optimizer.lr": "a,b"})
    report_sweep(sweep)
    found = [row["optimizer.lr"] for row in csv.DictReader(io.StringIO(page(sweep, "runs.csv")))]
    assert found == [*(f"'{word}" for word in words[:5]), "-0.5", "plain"]
