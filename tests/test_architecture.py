"""The dependency direction of the design, and the README's map of the project."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import OURS

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "quartet"

# what a module may import, besides the standard library and its own folder
ALLOWED = {
    "models": {"torch", "torchvision", "quartet.arguments"},
    "optim.py": {"torch", "quartet.hardware"},
    "hardware.py": {"torch"},
    "sampling.py": {"torch"},
    "data": {
        "torch", "torchvision", "numpy", "pytorch_lightning", "sklearn", "tokenizers", "PIL", "scipy", "pandas", "pyarrow",
        "quartet.arguments", "quartet.say", "quartet.typed",
    },
    "tasks": {"torch", "torchmetrics", "pytorch_lightning", "quartet.optim", "quartet.data.spec", "quartet.distributed"},
    "callbacks": {
        "torch", "numpy", "pytorch_lightning", "matplotlib", "rich", "PIL", "sklearn", "torchmetrics", "tensorboard",
        "quartet.sampling", "quartet.optim", "quartet.data.spec", "quartet.data.base",
        "quartet.distributed", "quartet.interruption", "quartet.lettering", "quartet.run", "quartet.say",
        "quartet.sweeps.study",
    },
    "sweeps": {
        "hydra", "omegaconf", "filelock", "rich", "optuna", "submitit", "ray",
        "quartet.build", "quartet.config", "quartet.cli", "quartet.interruption", "quartet.launch", "quartet.report",
        "quartet.run", "quartet.say", "quartet.train", "quartet.trust", "quartet.typed", "quartet.worker", "quartet.workers",
    },
    "report": {
        "numpy", "scipy", "optuna", "matplotlib", "omegaconf",
        "quartet.lettering", "quartet.run", "quartet.build", "quartet.train", "quartet.evaluate", "quartet.say",
        "quartet.typed",
    },
    "lettering.py": {"matplotlib"},
    "say.py": set(),
    "typed.py": set(),
    "trust.py": {"quartet.typed"},
    "run.py": {
        "filelock", "omegaconf", "yaml", "quartet.config", "quartet.interruption", "quartet.say", "quartet.trust",
        "quartet.typed",
    },
    "distributed.py": {"torch"},
    "interruption.py": set(),
    "arguments.py": set(),
    "config.py": {
        "hydra", "omegaconf", "quartet.arguments", "quartet.cli", "quartet.data.splits", "quartet.say", "quartet.trust",
        "quartet.typed",
    },
    "cli.py": {
        "hydra", "omegaconf", "quartet.config", "quartet.run", "quartet.interruption", "quartet.say", "quartet.trust",
        "quartet.typed",
    },
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in the file; of ours the full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module in ("quartet", "quartet.data") else {node.module}
    return {name if name.startswith("quartet") else name.split(".")[0] for name in found}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_follow_the_design(part):
    path = PACKAGE / part
    own = f"quartet.{path.stem}"
    for file in [path] if path.is_file() else ours(f"src/quartet/{part}/"):
        foreign = {name for name in imports(file) if name not in sys.stdlib_module_names and not name.startswith(own)}
        assert foreign <= ALLOWED[part], f"{file.relative_to(PROJECT)} imports {foreign - ALLOWED[part]}"


def ours(folder: str) -> list[Path]:
    return [PROJECT / name for name in OURS if name.startswith(folder)]


@pytest.mark.skipif(not os.environ.get("QUARTET_UPSTREAM"), reason="a project made from Quartet has files of its own")
def test_every_file_of_ours_is_looked_at():
    """In Quartet's own checks (.ci/run sets the variable) nothing is left out of tests/ours.txt."""
    folders = ("conf", "src", "scripts", "benchmarks")
    found = {path for folder in folders for path in (PROJECT / folder).rglob("*") if path.suffix in (".py", ".yaml")}
    assert {path.relative_to(PROJECT).as_posix() for path in found} == set(OURS)


def readme_tree() -> set[str]:
    """Paths in the README's tree: indented by two spaces a level, a phrase after each."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.S)
    assert block, "the README has a tree between <!-- tree --> and the end of its block"
    paths, folders = set(), []
    for line in block[1].splitlines():
        indent, name, phrase = re.fullmatch(r"( *)(\S+)\s+(\S.*)", line).groups()  # type: ignore[union-attr]
        assert len(phrase.split()) >= 2, f"{name} needs a phrase"
        folders = [*folders[: len(indent) // 2], name.rstrip("/")]
        paths.add("/".join(folders))
    return paths


def test_the_readme_s_tree_is_the_project():
    """Every path in the tree exists; every package, and every group of conf/, is in the tree."""
    tree = readme_tree()
    missing = [path for path in tree if not (PROJECT / path).exists()]
    assert not missing, f"in the README but not in the project: {missing}"
    names = {Path(name).parent.as_posix() for name in OURS if name.startswith("src/")} - {"src/quartet"}
    names |= {name.rpartition("/")[0] for name in OURS if name.count("/") == 2 and name.startswith("conf/")}
    assert names <= {path.rstrip("/") for path in tree} | {"src/quartet"}, f"not in the README: {sorted(names - tree)}"


def test_every_row_of_the_results_names_its_experiment():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `experiment=(\w+)`", text, re.M)
    experiments = {path.stem for path in ours("conf/experiment/")}
    assert set(rows) == experiments, set(rows) ^ experiments


def commands() -> list[str]:
    """The lines of the README's shell blocks that start a script."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("python scripts/train.py")})


@pytest.mark.parametrize("command", commands())
def test_every_training_command_of_the_readme_composes(command, compose):
    """With the first, second … value of each parameter that is swept; of an interval its lower end."""
    import shlex

    from quartet.build import check
    from quartet.sweeps.space import parse

    space, fixed = parse({}, [word for word in shlex.split(command)[2:] if word != "-m"], None)
    for turn in range(max([len(d.values or ()) for d in space], default=1)):
        point = [f"{d.key}={d.values[turn % len(d.values)] if d.values else d.low}" for d in space]
        check(compose(*fixed, *point))
