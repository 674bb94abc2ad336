"""Options are declared once: reading, presets, checks and help follow from that."""

import random
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.declaration import (
    READERS,
    as_text,
    check,
    get_parser,
    help_text,
    option,
    parse,
    read_preset,
)


@dataclass(kw_only=True)
class Some:
    preset: str = option("which", "mini")
    rate: float = option("a rate", 0.5, least=0)
    words: list[str] = option("words", [], choices=("a", "b"), empty="all")
    pairs: dict[str, str] = option("pairs", {})
    layer: int | str = option("layer")
    config: Path = option("file", Path("x.yaml"), exists=True)


@pytest.fixture
def presets(tmp_path):
    (tmp_path / "mini.sh").write_text('#!/bin/bash\n# words\nlayer=3\nwords="a b"\n')
    return tmp_path


def read(presets, *cmd):
    return parse(get_parser(Some), Some, cmd, presets)


def test_command_line_wins_over_preset_over_declaration(presets):
    values, given, helps = read(presets, "--layer", "all", "--pairs=x=1 y=2")
    assert values == {
        "preset": "mini",
        "rate": 0.5,
        "words": ["a", "b"],
        "pairs": {"x": "1", "y": "2"},
        "layer": "all",
        "config": Path("x.yaml"),
    }
    assert given == {"layer": "all", "pairs": {"x": "1", "y": "2"}} and not helps


@pytest.mark.parametrize(
    "line",
    [
        "layer=$(touch mark)",
        'words="`touch mark`"',
        "touch mark",
        "layer=3; touch mark",
        "layer=3 words=a",
        "no_such_option=1",
        ". other.sh",
    ],
)
def test_a_preset_holds_options_alone_and_is_not_run(presets, line, monkeypatch):
    monkeypatch.chdir(presets)
    path = presets / "other.sh"
    path.write_text(f"layer=3\n{line}\n")
    with pytest.raises(RecipeError, match="other.sh:2: found .*, expected a line"):
        read_preset(path, {"layer", "words"})
    assert not (presets / "mark").exists()


def test_an_option_that_the_preset_lacks_is_asked_for(presets, capsys):
    (presets / "bare.sh").write_text("words=a\n")
    with pytest.raises(SystemExit) as ended:
        read(presets, "--preset", "bare")
    assert ended.value.code == 2
    assert "--layer: found no value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": -0.5}, "--rate: found -0.5, expected 0 or more"),
        ({"words": ["a", "c"]}, "--words: found 'c', expected some of a, b"),
        ({"words": []}, "--words: found 'none'"),
        ({"config": Path("none.yaml")}, "--config: none.yaml not found"),
    ],
)
def test_what_is_declared_is_checked(presets, changes, message, monkeypatch):
    monkeypatch.chdir(presets)
    Path("x.yaml").touch()
    values = read(presets)[0]
    check(Some(**values))
    with pytest.raises(RecipeError, match=message):
        check(Some(**values | changes))


def test_a_value_is_read_back_from_its_text():
    draw = random.Random(0)
    samples = {
        int: draw.randrange(-9, 10**9),
        float: draw.random() * 10 ** draw.randrange(-9, 9),
        str: "a text",
        Path: Path("some/where"),
        bool: draw.random() < 0.5,
        int | str: "all",
        list[str]: ["x", "y"],
        list[int]: [draw.randrange(99) for _ in range(5)],
        list[float]: [draw.random() for _ in range(5)],
        dict[str, str]: {"eng": "char", "cmn": "pinyin"},
    }
    assert samples.keys() == READERS.keys()
    for kind, value in samples.items():
        assert READERS[kind](as_text(value)) == value


def test_help_shows_every_option_with_its_value(presets):
    values, _, helps = read(presets, "--help", "--rate", "2")
    text = help_text(Some, values, "About it.", {0: "first", 1: "second"})
    assert helps and "(2)" in text and "(a b)" in text and "(x.yaml)" in text
    for field in fields(Some):
        assert f"  --{field.name} " in text
    assert "   0  first" in text and "1  second" in text
