"""The sections on units at toy size: rows, sums, and that both paths do the same."""

import dataclasses
import json
import mmap
import time

import kaldiio
import numpy as np
import pytest

from benchmarks import kmeans, kmeans_quality, labels, memory, units
from benchmarks.units_setup import write_speech, write_teacher
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.units.features import FeatureStore


def table_rows(table):
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_the_kmeans_store_lists_one_shard_until_it_is_long_enough(tmp_path):
    options = kmeans.QUICK
    store = FeatureStore(kmeans.write_store(tmp_path / "store", 2000, options))
    assert (store.frames, store.dim) == (2000, options.dim)
    assert (tmp_path / "store" / "00000.bin").stat().st_size == 500 * 8 * 4
    first, second = store.take(np.arange(500)), store.take(np.arange(500, 1000))
    np.testing.assert_array_equal(first, second)


def test_the_kmeans_table_has_every_store_with_its_peak():
    text, table, *_ = kmeans.run(kmeans.QUICK, "cpu")
    assert "RssAnon" in text
    rows = table_rows(table)
    assert [row["frames"] for row in rows] == ["2000", "4000"]
    # One pass in steps of 400.
    assert [row["steps"] for row in rows] == ["5", "10"]
    for row in rows:
        assert 0 < float(row["peak RssAnon MiB"]) < 100_000
        assert row["target"].startswith("<= 2048: ")


def test_starts_are_compared_on_utterances_that_nothing_was_learnt_from(
    tmp_path,
):
    frames = kmeans_quality.moving_frames(1000, 4)
    store = kmeans_quality.write_frames(tmp_path / "store", frames)
    index = json.loads((store / "index.json").read_text())
    # Ten utterances of a hundred frames.
    utts = [[f"utt{n}", "eng", 100 * n, 100] for n in range(10)]
    index["shards"][0]["utts"] = utts
    (store / "index.json").write_text(json.dumps(index))
    learn, others = kmeans_quality.held_out(str(store), kmeans.QUICK)
    np.testing.assert_array_equal(others, frames[:100])
    np.testing.assert_array_equal(learn, frames[100:])
    options = dataclasses.replace(kmeans.QUICK, stores=(str(store),))
    text, table = kmeans_quality.run(options, "cpu")
    rows = table_rows(table)
    names = [row["form"] for row in rows]
    assert names[:2] == ["ours, starts 1", "ours, starts 2"]
    assert {"counts kept, 40 passes, starts 1"} < {*names}
    assert rows[0]["against ours"] == "+0.00%"
    assert all(float(row["held-out inertia"]) > 0 for row in rows)
    assert [row["passes"] for row in rows if "40 passes" in row["form"]] == ["40"] * 2


def test_the_labels_table_compares_with_the_forward_alone():
    text, table = labels.run(labels.QUICK, "cpu")
    alone, ours, whole = table_rows(table)
    assert alone["form"] == "teacher's forward alone, 2 of 4 blocks"
    assert whole["form"] == "teacher's forward alone, all 4 blocks"
    assert alone["throughput / forward alone"].startswith("1.00 ")
    assert ours["target"].startswith(">= 0.9: ") and whole["target"] == "-"
    assert "0 bytes of features" in text


def test_labelling_writes_less_than_a_tenth_of_the_features(tmp_path):
    # 16 channels of float32 a frame are 64 bytes, a label of one digit two.
    options = dataclasses.replace(labels.QUICK, utterances=3, shortest=5, longest=6)
    text, _ = labels.run(options, "cpu")
    written = int(text.split("wrote at most ")[1].split()[0])
    frames = sum(s * 50 for s in (5, 5.5, 6))
    assert 2 * 2 * frames < written < 0.2 * 64 * frames


@pytest.fixture(scope="module")
def both_paths(tmp_path_factory):
    """Every step of both paths, run on the same speech; all of it clustered."""
    root = tmp_path_factory.mktemp("paths")
    options = dataclasses.replace(units.QUICK, share=1.0)
    write_teacher(root, options.size)
    write_speech(root, options.utterances, options.shortest, options.longest)
    for functions in units.PATHS.values():
        for step in functions.values():
            # A process that freed memory before may need no new: nothing to assert.
            units.measure(step, root, options)
    return root


def test_both_paths_see_the_same_features(both_paths):
    folder = both_paths / "stock" / "features"
    stock = np.concatenate(
        [x for _, x in kaldiio.load_scp_sequential(str(folder / "feats.scp"))]
    )
    ours = FeatureStore(both_paths / "ours" / "features")
    np.testing.assert_array_equal(ours.take(np.arange(ours.frames)), stock)


def test_both_paths_label_every_frame(both_paths):
    stock, ours = (
        {
            utt: len(line.split())
            for utt, line in read_table(both_paths / path / "text.km").items()
        }
        for path in ("stock", "ours")
    )
    assert stock == ours
    sidecar = json.loads((both_paths / "ours" / "text.km.json").read_text())
    assert sum(ours.values()) == sidecar["frames"]


def test_the_tables_of_both_paths_add_up():
    text, steps, whole = units.run(units.QUICK, "cpu")
    rows, totals = table_rows(steps), table_rows(whole)
    assert [row["path"] for row in rows] == ["stock"] * 3 + ["ours"] * 3
    for path, total in zip(("stock", "ours"), totals, strict=False):
        own = [row for row in rows if row["path"] == path]
        seconds = sum(float(row["seconds"]) for row in own)
        assert float(total["seconds"]) == pytest.approx(seconds, abs=0.2)
        peak = max(float(row["peak RssAnon MB"]) for row in own)
        assert float(total["peak RssAnon MB"]) == peak
    assert totals[2]["path"] == "ours / stock"


def test_the_peak_of_anonymous_memory_sees_what_is_freed_again():
    with memory.AnonymousPeak() as peak:
        before = peak.bytes or memory._status("RssAnon")
        # Pages of its own: the allocator may have some that are counted already.
        block = mmap.mmap(-1, 40_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.write(b"1" * len(block))
        until = time.monotonic() + 60
        while peak.bytes < before + 30_000_000:  # looked at now and then
            assert time.monotonic() < until
        block.close()
    assert peak.bytes - memory._status("RssAnon") > 20_000_000


def test_written_bytes_are_counted_wherever_they_go(tmp_path):
    before = memory.written()
    (tmp_path / "file").write_bytes(bytes(12345))
    assert 12345 <= memory.written() - before < 20000
