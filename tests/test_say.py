"""What a person reads is said once, however many processes train together."""

import ast
from pathlib import Path

import pytest

import quartet
from quartet.say import say


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "3", "LOCAL_RANK": "0"}, False),  # the first process of another machine
        ({"LOCAL_RANK": "1"}, False),  # Lightning's own launcher sets no RANK
    ],
)
def test_the_first_process_says_it(ranks, said, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    say("note: a column is ignored")
    assert capsys.readouterr().out == "note: a column is ignored\n" * said


def test_data_speak_through_it_alone():
    """Every process reads the data, so a bare print there is printed by each of them."""
    for file in (Path(quartet.__file__).parent / "data").rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Name)}
        assert "print" not in names, f"{file.name} prints"
