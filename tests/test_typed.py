"""What is printed to be typed runs as printed, and what a person types is understood."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from quartet.cli import quoted
from quartet.typed import argument

ODD = "a1\\\"'${}[](),=. \u00fc日:e-+_~#!&;|*?%@^<>`"
CONTROL = ("Cs", "Cc", "Zl", "Zp")


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(exclude_categories=CONTROL), max_size=20) | st.text(ODD, max_size=12))
@example("2024")
@example("1e3")
@example("1_000")
@example("007")
@example("true")
@example("null")
@example("inf")
@example("")
@example(" ")
@example("~/runs")
@example("${oc.env:HOME}")
@example("\\${x}\\")
@example("My Project (copy)/a=b, c [1]/数据")
def test_a_text_stays_that_text(text):
    (word,) = shlex.split(argument("run.name", text))
    override = OverridesParser.create().parse_override(word)
    config = OmegaConf.create({})
    OmegaConf.update(config, override.key_or_group, override.value())
    found = OmegaConf.to_container(config, resolve=True)["run"]["name"]  # type: ignore[index, call-overload]
    assert found == text and type(found) is str


@pytest.mark.parametrize("text", ["outputs/mlp-wine/2026-11-26_18-21-23-475bf0", "/data/x.csv", "a+b", "a@b", "half%"])
def test_a_plain_path_is_shown_as_it_is(text):
    assert argument("run", text) == f"run={text}"


@pytest.mark.parametrize(
    ("word", "sweeps", "expected"),
    [
        ("data.path=/x/ü.csv", True, 'data.path="/x/ü.csv"'),
        ("data.path=/x/a.csv", True, "data.path=/x/a.csv"),
        ("run=/x/a=b, c [1]/数据", False, 'run="/x/a=b, c [1]/数据"'),
        ("prompt=To be, or not to be", False, 'prompt="To be, or not to be"'),
        ("prompt=def ", False, 'prompt="def "'),
        ('prompt="def "', False, 'prompt="def "'),
        ("prompt=it's", False, 'prompt="it\'s"'),
        ("optimizer.lr=1e-3,3e-3", True, "optimizer.lr=1e-3,3e-3"),
        ("model.hidden=[4,4]", True, "model.hidden=[4,4]"),
        ("model.hidden=[4", True, "model.hidden=[4"),
        ("optimizer.lr=choice(1,2)", True, "optimizer.lr=choice(1,2)"),
        ("temperature=0.5", False, "temperature=0.5"),
        ("top_k=null", False, "top_k=null"),
        ("-m", True, "-m"),
        ("run", False, "run"),
    ],
)
def test_a_value_is_quoted_where_hydra_could_not_read_it(word, sweeps, expected):
    assert quoted(word, sweeps=sweeps) == expected


FAST = "trainer.max_epochs=1 callbacks.data_report=null callbacks.figures=null logger=none"


def commands(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if "scripts/" in line and line.startswith("  ")]


def type_in(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_what_a_run_prints_runs_from_an_odd_place(script, tmp_path, monkeypatch):
    home = tmp_path / "My Project (copy)" / "a=b, c [1]" / "数据 $HOME ~x"
    home.mkdir(parents=True)
    monkeypatch.setenv("QUARTET_OUTPUTS", str(home))
    table = home / "größe, b.csv"
    table.write_text("a,b,y\n" + "".join(f"{i},{i * i},{'xz'[i % 2]}\n" for i in range(40)))
    done = script(
        "train", "model=mlp", "data=csv", argument_typed("data.path", table), "data.target=y", *FAST.split(), cwd=home
    )
    assert done.returncode == 0, done.stderr
    (evaluate,) = commands(done.stdout)
    again = type_in(evaluate, home)
    assert again.returncode == 0 and "test/accuracy" in again.stdout, again.stderr


def argument_typed(key: str, value: object) -> str:
    """As a program gets it: the shell's quotes are gone."""
    (word,) = shlex.split(argument(key, value))
    return word
