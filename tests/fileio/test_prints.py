"""Prints of files follow their content, and files are read only when they changed."""

import os

import numpy as np
import pytest

from espnet2_lamer.fileio import prints
from espnet2_lamer.fileio.prints import Prints, file_prints, listed_files, sharing


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    paths = [folder / f"{name}.wav" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode() * 10)
    return [str(path) for path in paths]


@pytest.fixture
def reads(monkeypatch):
    """Paths that were read, in any order."""
    real, found = prints.sha256_file, []
    monkeypatch.setattr(
        prints, "sha256_file", lambda path: found.append(path) or real(path)
    )
    return found


def test_only_changed_files_are_read_again_also_by_a_later_process(
    files, tmp_path, reads
):
    known = Prints(tmp_path / "seen.npy")
    first = known(files)
    assert len(set(first.tolist())) == 3 and 0 not in first
    known.save()
    again = Prints(tmp_path / "seen.npy")
    np.testing.assert_array_equal(again(reversed(files)), first[::-1])
    assert sorted(reads) == files
    # As long as before, with an older time.
    with open(files[1], "r+b") as handle:
        handle.write(b"z")
    os.utime(files[1], (1, 1))
    found = again(files)
    assert (found == first).tolist() == [True, False, True]
    assert sorted(reads) == sorted([*files, files[1]])


def test_a_time_put_back_does_not_hide_another_content(files):
    known = Prints()
    (before,) = known(files[:1])
    times = os.stat(files[0])
    with open(files[0], "r+b") as handle:
        handle.write(b"z")
    os.utime(files[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    (after,) = known(files[:1])
    assert before != after


def test_a_touched_file_is_read_has_the_same_print_and_is_told(files, reads, caplog):
    caplog.set_level("INFO")
    known = Prints()
    first = known(files)
    os.utime(files[2], (9, 9))
    np.testing.assert_array_equal(known(files), first)
    assert reads.count(files[2]) == 2 and len(reads) == 4
    assert "1 files with other times than before, same content" in caplog.text


def test_what_is_no_file_has_print_0_until_it_is_one(files, tmp_path):
    known, late = Prints(), str(tmp_path / "late.wav")
    assert known([late, str(tmp_path), "sox a.wav |"]).tolist() == [0, 0, 0]
    open(late, "wb").close()
    assert known([late])[0] != 0


def test_a_damaged_memory_costs_time_alone(files, tmp_path):
    (tmp_path / "seen.npy").write_bytes(b"\x93NUMPY nothing")
    expected = Prints()(files)
    np.testing.assert_array_equal(Prints(tmp_path / "seen.npy")(files), expected)


def test_commands_share_what_the_recipe_knows(files, reads):
    known = Prints()
    known(files)
    with sharing(known):
        file_prints(files)
    assert len(reads) == 3
    file_prints(files)
    assert len(reads) == 6


def test_more_files_than_fit_in_a_batch_keep_their_order(files, monkeypatch):
    monkeypatch.setattr(prints, "_PART", 2)
    monkeypatch.setattr(prints, "_BATCH", 4)
    names = [files[n % 3] for n in range(11)]
    expected = dict(zip(files, Prints()(files).tolist(), strict=True))
    assert Prints()(names).tolist() == [expected[name] for name in names]


def test_tables_name_their_audio(tmp_path):
    (tmp_path / "wav.scp").write_text("u1 /a b.wav\nu2 /c.wav\n")
    (tmp_path / "fleurs.left_out.tsv").write_text(
        "set\tsource\treason\twhat\nd\tf\tx\t/e\n"
    )
    (tmp_path / "transcript_1h_train.txt").write_text("u3 0 hello\n")
    assert [*listed_files(tmp_path / "wav.scp")] == ["/a b.wav", "/c.wav"]
    assert [*listed_files(tmp_path / "fleurs.left_out.tsv")] == ["what", "/e"]
    (wav,) = listed_files(tmp_path / "transcript_1h_train.txt")
    assert wav == str(tmp_path / "wav" / "u3.wav")
    assert len([*listed_files(tmp_path)]) == 3
