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

# libraries that a part may import besides the standard library and our own package; what is not named here may import all
LIBRARIES = {
    "models": {"torch", "torchvision"},
    "optim": {"torch"},
    "sampling": {"torch"},
    "system": {"torch", "pytorch_lightning"},
    "data": {
        "torch", "torchvision", "numpy", "pytorch_lightning", "sklearn", "tokenizers", "PIL", "scipy", "pandas", "pyarrow",
    },
    "tasks": {"torch", "torchmetrics", "pytorch_lightning"},
    "callbacks": {
        "torch", "numpy", "pytorch_lightning", "matplotlib", "rich", "PIL", "sklearn", "torchmetrics", "tensorboard",
    },
    "report": {
        "numpy", "scipy", "optuna", "matplotlib", "omegaconf", "pandas", "jinja2", "markupsafe", "torchmetrics",
        "pytorch_lightning",
    },
    # no torch
    **{part: {"hydra", "omegaconf", "filelock"} for part in ("cli", "config", "config_errors", "config_groups", "run")},
    "old_configs": {"omegaconf"},
    **{part: set() for part in ("signatures", "environment", "objective", "say", "trust", "typed")},
    "files": {"yaml"},
}  # fmt: skip

# parts of our own that a part may not import, not even through others, for the sake of who reads or reuses it alone
MAY_IMPORT = {
    "models": {"signatures"},
    "sampling": set(),
    "optim": {"system"},
    "tasks": {"data", "optim", "system"},
    "data": {"signatures", "files", "say", "system", "typed"},
    "callbacks": {"data", "files", "lettering", "objective", "optim", "run", "sampling", "say", "system"},
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(libraries, parts of our own) that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "quartet" else {node.module}
            )
    own = {name.split(".")[1] for name in names if name.startswith("quartet.")}
    return {name.split(".")[0] for name in names} - {"quartet", *sys.stdlib_module_names}, own


def parts() -> dict[str, list[Path]]:
    """The top-level modules and packages of our own, with their files."""
    found: dict[str, list[Path]] = {}
    for path in ours("src/quartet/"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(name, []).append(path)
    return found


@pytest.mark.parametrize("part", LIBRARIES)
def test_a_part_imports_what_it_is_made_of_and_nothing_else(part):
    for path in parts()[part]:
        libraries, own = imports(path)
        assert libraries <= LIBRARIES[part], f"{path.relative_to(PROJECT)} imports {libraries - LIBRARIES[part]}"
        if part in MAY_IMPORT:
            foreign = own - MAY_IMPORT[part] - {part}
            assert not foreign, f"{path.relative_to(PROJECT)} imports quartet's {foreign}"


def test_imports_have_one_direction():
    """No part imports another that imports it, however far around, and late imports count."""
    graph = {part: set().union(*(imports(path)[1] for path in paths)) - {part} for part, paths in parts().items()}
    while leaves := {part for part, needed in graph.items() if not needed & graph.keys()}:
        graph = {part: needed for part, needed in graph.items() if part not in leaves}
    assert not graph, f"these import each other in a circle: {graph}"


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


def test_the_chinese_readme_has_the_same_commands():
    """In the same order; comments are translated."""
    pages = [(PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
    blocks = ["".join(re.findall(r"```bash\n(.*?)```", page, re.S)) for page in pages]
    english, chinese = ([line.split(" #")[0].strip() for line in block.splitlines()] for block in blocks)
    assert chinese == english


def commands() -> list[str]:
    """The lines of shell blocks, in the README and in docs/, that train."""
    pages = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("python scripts/train.py")})


@pytest.mark.parametrize("command", commands())
def test_every_training_command_of_the_pages_composes(command, compose):
    """With the first, second … value of each parameter that is swept; of an interval its lower end."""
    import shlex

    from quartet.build import check
    from quartet.sweeps.space import parse

    space, fixed = parse({}, [word for word in shlex.split(command)[2:] if word != "-m"], None)
    for turn in range(max([len(d.values or ()) for d in space], default=1)):
        point = [f"{d.key}={d.values[turn % len(d.values)] if d.values else d.low}" for d in space]
        check(compose(*fixed, *point))
