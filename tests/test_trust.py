"""Whose code a config may name, and when it is imported."""

from __future__ import annotations

import sys
import time

import pytest
from omegaconf import OmegaConf

from quartet import build, trust
from quartet.run import Run


@pytest.fixture
def here(tmp_path) -> Run:
    """A directory for a config.yaml from elsewhere."""
    return Run(tmp_path)


UNSEEN = [  # modules that would act when they are imported, or could: a program, a server, internals, backends
    ("quartet.sweeps.preload.x", "model"), ("quartet.worker.main", "callbacks"), ("quartet.report.page.x", None),
    ("torch.utils.collect_env.x", "model"), ("torch.distributed.run.main", "trainer"), ("torchvision.io.x", "data"),
    ("torchmetrics.x.y", "task"), ("pytorch_lightning.cli.LightningCLI", "trainer"), ("antigravity.x", "model"),
    ("idlelib.pyshell.PyShell", "callbacks"), ("pytorch_lightning.loggersx.X", "logger"), ("quartet.modelsx.X", "model"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "place"), UNSEEN)
def test_what_is_not_allowed_is_not_imported(monkeypatch, target, place):
    monkeypatch.setattr(trust, "load", lambda module: pytest.fail(f"{module} would be imported"))
    with pytest.raises(ValueError, match=f"_target_={target} is not allowed: "):
        build.locate(target, place)


def test_a_refused_module_of_sweeps_is_not_imported(compose):
    """Importing it loads every model and data set, before anybody has asked for one."""
    assert "quartet.sweeps.preload" not in sys.modules
    with pytest.raises(ValueError, match=r"_target_=quartet\.sweeps\.preload\.x is not allowed"):
        build.check(compose("model=mlp", "model._target_=quartet.sweeps.preload.x"))
    assert "quartet.sweeps.preload" not in sys.modules


def aliases(levels: int) -> str:
    lines = ["l0: &l0 [a,a,a,a,a,a,a,a,a]"]
    lines += [f"l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "run: {name: x}\n" + "\n".join(lines)


@pytest.mark.parametrize("content", [aliases(9), "run: &a {name: x}\nb: {<<: *a}", "run: {name: &a x}"])
def test_a_config_that_would_grow_is_refused_at_once(here, content):
    (here.directory / "config.yaml").write_text(content)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.yaml is damaged or not plain data \(it refers to parts of itself"):
        _ = here.config
    assert time.monotonic() - start < 2


def test_signs_of_yaml_within_texts_are_text(here):
    content = {"run": {"name": "a & b * c", "x": "*.png", "y": "&amp;"}}
    OmegaConf.save(OmegaConf.create(content), here.directory / "config.yaml")
    assert here.config.run == content["run"]


def test_a_config_written_by_us_never_refers_to_itself(tmp_path):
    """Lists that several keys refer to are written out for each of them."""
    values = {
        "run": {"dir": str(tmp_path / "r"), "name": "x", "root": "r"},
        "a": [1, {"b": 2}],
        "c": "${a}",
        "d": "${a}",
    }
    assert Run.create(OmegaConf.create(values)).config.d == [1, {"b": 2}]


# what Lightning's parts would write

SAVES = "pytorch_lightning.callbacks.ModelCheckpoint"


@pytest.mark.parametrize(
    "settings",
    [
        {"filename": "{step:c}{step:c}/{step:c}{step:c}/outside/evil", "auto_insert_metric_name": False},
        {"filename": "{step!r}"},
        {"filename": "{step:/>9}"},
        {"filename": "{epoch.real}"},
        {"filename": "{epoch"},
        {"filename": "{step:99999999d}"},
        {"filename": "$HOME"},
        {"dirpath": 3},
        {"dirpath": ["a"]},
        {"dirpath": {"a": "b"}},
    ],
)
def test_file_names_that_lead_out_of_the_run_once_they_are_filled_in(compose, settings):
    config = compose("model=mlp", "+callbacks.x={}")
    config.callbacks.x = {"_target_": SAVES, **settings}
    with pytest.raises(ValueError, match=r"callbacks\.x\.\w+.* climbs? out of the run"):
        build.check(config)


@pytest.mark.parametrize("filename", ["{epoch}-own", "{epoch:02d}-{val/loss:.2f}", "best", "{step}"])
def test_fields_of_a_file_name(compose, filename):
    config = compose("model=mlp", "+callbacks.x={}")
    config.callbacks.x = {"_target_": SAVES, "filename": filename, "dirpath": None}
    build.check(config)
    assert build.locate(SAVES, "callbacks").__name__ == "ModelCheckpoint"


# packages of the user's own


def test_packages_are_those_of_targets_at_whatever_depth():
    inner = {"_target_": "other.X", "list": [{"_target_": "third.y.Z"}]}
    config = {"model": {"_target_": "mylib.net.Mixer", "x": inner}, "data": {"_target_": "quartet.data.X"}}
    assert trust.packages(config) == ["mylib", "other", "third"]
    words = [
        "model._target_=a.X,b.Y",
        "+callbacks.x={_target_:c.d.Z,path:m.n}",
        "data.path=e.f",
        "x._target_=os.system",
    ]
    assert trust.packages_in_words(words) == ["a", "b", "c", "m"]
    assert not trust.trusted(), "conf/ names none but ours, Hydra's plugins not counted"


def test_names_in_the_environment(monkeypatch):
    monkeypatch.setenv("QUARTET_TRUST", "mylib, other;os:torch")
    assert trust.trusted() == {"mylib", "other"}
    assert trust.refusal("mylib.X", None) is None and trust.refusal("other.x.Y", "model") is None
    for target in ("mylib_evil.X", "os.system", "subprocess.Popen", "mylib", "mylib.", "mylib.x-y", ".mylib.X"):
        assert trust.refusal(target, None), target
    assert "if mylib2 is yours, set QUARTET_TRUST=mylib2 or name it in conf/" in str(trust.refusal("mylib2.X", "model"))


def test_names_in_conf(monkeypatch, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "hydra").mkdir()
    (tmp_path / "conf" / "model" / "mixer.yaml").write_text(
        "_target_: mylib.net.Mixer # not other.X\n# _target_: third.X\n"
    )
    (tmp_path / "conf" / "hydra" / "launcher.yaml").write_text("_target_: plugin.Launcher\n")
    monkeypatch.setattr(trust, "PROJECT", tmp_path)
    assert trust.trusted() == {"mylib"}
