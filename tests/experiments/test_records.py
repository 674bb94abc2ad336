"""Cells that were finished elsewhere count as done, with every figure they had."""

import json

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.experiments.records import pack_records, take_records
from espnet2_lamer.experiments.tables import Tables


@pytest.fixture
def packed(small, tmp_path):
    """``records.jsonl`` of the small definition; its ``--expdir`` is moved away."""
    matrix = small.matrix(machine="a", commit="1234")
    matrix.run()
    path = tmp_path / "records.jsonl"
    path.write_text(pack_records(matrix.cells, matrix.store))
    small.before = Tables.of_cells(matrix, {}).as_csv()
    small.root.rename(tmp_path / "elsewhere")
    small.ran.clear()
    return path


def test_tables_of_cells_taken_over_are_those_of_where_they_ran(small, packed):
    matrix = small.matrix(machine="b", commit="5678")
    assert take_records(matrix.cells, matrix.store, packed) == 6
    assert matrix.run() == []
    assert small.ran == []
    after = Tables.of_cells(matrix, {}).as_csv()
    assert after == small.before
    assert "# cells ran on: a (1234)" in after
    # Written again they are the same, and taken again they change nothing.
    assert pack_records(matrix.cells, matrix.store) == packed.read_text()
    assert take_records(matrix.cells, matrix.store, packed) == 0


def test_cells_that_are_done_here_stay_and_the_rest_runs(small, packed, caplog):
    lines = packed.read_text().splitlines()
    kept = [ln for ln in lines if '"seed":0' in ln or '"utterances":[' in ln[:16]]
    packed.write_text("\n".join(kept) + "\n")
    here = small.matrix(machine="b")
    here.run("good/0")
    small.ran.clear()
    caplog.set_level("INFO")
    assert take_records(here.cells, here.store, packed) == 1
    assert "1 cells taken over, 1 are done here, 0 are not of this" in caplog.text
    assert here.store.record(here.cells[0].key)["machine"] == "b"
    here.run()
    assert small.ran == [(s, seed) for seed in (1, 2) for s in ("good", "bad")]


def test_a_cell_taken_over_has_the_name_that_the_definition_gives_it(small, packed):
    small.change("good", "fine")
    matrix = small.matrix()
    assert take_records(matrix.cells, matrix.store, packed) == 6
    again = pack_records(matrix.cells, matrix.store)
    assert again == packed.read_text().replace('"good"', '"fine"')
    assert '"fine"' in again


def test_a_cell_that_reads_the_files_of_one_taken_over_waits(small, packed):
    first = small.matrix()
    take_records(first.cells, first.store, packed)
    small.change(
        "claims:",
        "    next:\n        data: {base: '{cell:good}/ssl_lamer'}\nclaims:",
    )
    matrix = small.matrix()
    assert matrix.run() == []
    assert small.ran == []
    waiting = next(c for c in matrix.cells if c.system == "next")
    status = matrix.status(waiting)
    assert status.state == "not run"
    assert "the files of good, seed 0" in status.why
    assert str(packed) in status.why


def test_cells_of_changed_options_are_refused_by_name(small, packed):
    small.change("max_epoch: 2", "max_epoch: 3")
    matrix = small.matrix()
    with pytest.raises(RecipeError, match=r"found 6 cells, none of them"):
        take_records(matrix.cells, matrix.store, packed)


def _cut(text):
    return text[: len(text) // 2]


def _no_lists(text):
    return "\n".join(ln for ln in text.splitlines() if '"key"' in ln)


def _no_seconds(text):
    return text.replace('"seconds"', '"second"')


def _one_utterance_less(text):
    first, _, rest = text.partition("\n")
    return json.dumps({"utterances": ["u0"]}) + "\n" + rest if "u0" in first else ""


@pytest.mark.parametrize(
    "damage", [_cut, _no_lists, _no_seconds, _one_utterance_less, lambda _: "[1]\n"]
)
def test_a_damaged_file_is_refused_and_nothing_is_taken(small, packed, damage):
    packed.write_text(damage(packed.read_text()))
    matrix = small.matrix()
    with pytest.raises(RecipeError, match=r"records\.jsonl: line \d+: "):
        take_records(matrix.cells, matrix.store, packed)
    assert not [*small.root.rglob("record.json")]


def test_a_missing_file_is_named(small, tmp_path):
    matrix = small.matrix()
    with pytest.raises(RecipeError, match=r"nothing\.jsonl"):
        take_records(matrix.cells, matrix.store, tmp_path / "nothing.jsonl")
