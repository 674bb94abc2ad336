"""Tables that stay on disk give what a dict of their lines gives."""

import pickle
import random
import tracemalloc

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio import tables
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.fileio.tables import Index, NumberTable, Table, hashes_of


def write(path, rows):
    path.write_text("".join(f"{key} {value}\n" for key, value in rows), "utf-8")
    return path


@pytest.fixture(params=["sorted", "shuffled"])
def path(tmp_path, request):
    rows = [(f"utt{n:04d}é"[: 8 + n % 2], f"{n} {n + 1}  x") for n in range(500)]
    if request.param == "shuffled":
        random.Random(0).shuffle(rows)
    return write(tmp_path / "table", rows)


@pytest.mark.parametrize("pread", [True, False])
def test_a_table_is_the_dict_of_its_lines(path, pread, monkeypatch):
    if not pread:
        monkeypatch.delattr(tables.os, "pread")
    expected, table = read_table(path), Table(path)
    assert dict(table) == expected and list(table) == list(expected)
    assert len(table) == 500 and "utt9999" not in table
    assert table.is_sorted == (list(expected) == sorted(expected))
    with pytest.raises(KeyError):
        table["utt"]


def test_it_goes_to_another_process(path):
    assert dict(pickle.loads(pickle.dumps(Table(path)))) == read_table(path)


def test_tabs_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "table"
    path.write_bytes(b"\xef\xbb\xbfa\t1 2\nb  3\n")
    assert dict(Table(path)) == {"a": "1 2", "b": "3"}
    assert NumberTable(path)["a"] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\nb 2\na 3\n", "table:3: utterance id 'a' occurs twice"),
        (b"a 1\n\nb 2\n", "table:2: empty line"),
        (b"a 1\nb \xff\n", "table:2: byte 3 of the line is 0xff"),
    ],
)
def test_wrong_lines_are_named_when_the_table_is_opened(tmp_path, content, message):
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        Table(tmp_path / "table")


def test_keys_of_one_hash_are_told_apart(path, monkeypatch):
    monkeypatch.setattr(tables, "hash", lambda key: len(key), raising=False)
    assert dict(Table(path)) == read_table(path)


def test_tables_with_the_same_keys_share_an_index(tmp_path):
    first = Table(write(tmp_path / "a", [("u1", 1), ("u2", 2)]))
    same = Table(write(tmp_path / "b", [("u1", 3), ("u2", 4)]), first)
    other = Table(write(tmp_path / "c", [("u2", 3), ("u1", 4)]), first)
    assert same.index is first.index and other.index is not first.index
    assert (dict(same), dict(other)) == ({"u1": "3", "u2": "4"}, {"u2": "3", "u1": "4"})


def test_an_index_finds_what_is_there():
    keys = [str(n).encode() for n in range(1000)]
    index = Index(hashes_of(keys))
    found = index.find(hashes_of([*reversed(keys), b"x"]))
    np.testing.assert_array_equal(found, [*range(999, -1, -1), -1])
    assert Index(hashes_of([])).find(hashes_of([b"x"])).tolist() == [-1]


def test_a_line_takes_few_bytes(tmp_path):
    rows = ((f"speaker-with-a-long-name-{n:07d}", "1 " * 50) for n in range(20_000))
    path = write(tmp_path / "table", rows)
    tracemalloc.start()
    table = Table(path)
    second = Table(path, table)
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(second) == 20_000
    # 8 where a line begins, 12 of the index; growing arrays take an eighth more.
    assert now < 20_000 * (2 * 8 + 12) * 1.3
