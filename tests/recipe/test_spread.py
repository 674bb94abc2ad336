"""The spread of a preset counts for the preset's own runs alone."""

from pathlib import Path

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.command import read_options
from espnet2_lamer.recipe.reporting import find_spread
from espnet2_lamer.recipe.stages import ssl1

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_recipe(monkeypatch):
    monkeypatch.chdir(ROOT / "egs2/lamer_ssl/ssl1")


def spread(*cmd):
    return find_spread(read_options(ssl1, cmd))


def test_the_mini_presets_is_that_of_the_committed_table():
    found = spread()
    heads, tags = found.runs
    committed = ROOT / "docs/results"
    assert Path(heads).read_bytes() == (committed / "systems.csv").read_bytes()
    # Of the other what the first does not have.
    lines = (committed / "identification.csv").read_text().splitlines()
    assert {*Path(tags).read_text().splitlines()} <= {*lines}
    assert found.runs == {heads: 5, tags: 3}
    every = {"eng", "cmn", "yue", "average"}
    assert {lang for what, lang in found.points if what == "recognition"} == every
    for way in ("first tag", "most probable tag"):
        named = {n for what, n in found.points if what == f"identification by {way}"}
        assert named == every | {""}


@pytest.mark.parametrize("free", ["--seed=3", "--nj=1", "--tracks=asr", "--ngpu=0"])
def test_what_every_run_may_have_leaves_it(free):
    assert spread(free).points


def test_another_kind_of_run_has_none_and_it_is_said(caplog):
    caplog.set_level("INFO")
    assert not spread("--n_clusters=50").points
    assert "mini_lid.csv of the preset was measured without --n_clusters" in caplog.text
    given = spread("--n_clusters=50", "--spread=conf/spread/mini.csv")
    assert given.points


def test_a_table_of_other_systems_is_refused_before_anything_runs():
    given = ["--spread=conf/spread/mini.csv", "--ssl_tag=mine"]
    with pytest.raises(RecipeError, match=r"mini\.csv: no difference of 'mine' and"):
        read_options(ssl1, given)


def test_a_file_that_is_not_there_is_refused_before_anything_runs():
    with pytest.raises(RecipeError, match=r"--spread: nowhere\.csv not found"):
        read_options(ssl1, ["--spread=nowhere.csv"])
