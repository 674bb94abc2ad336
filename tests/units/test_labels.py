"""Labels: bytes independent of processes and kills, the sidecar, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.bin import assign_units as assign_units_bin
from espnet2_lamer.data.formatting import FormattedSet
from espnet2_lamer.data.speech import read_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.units import assign as assign_module
from espnet2_lamer.units.assign import assign_units
from espnet2_lamer.units.codebook import load_codebook, save_codebook
from espnet2_lamer.units.labels import (
    check_labels,
    read_sidecar,
    write_token_list,
)

K = 8


@pytest.fixture(scope="module")
def labels(speech, mfcc, codebook, tmp_path_factory):
    output = tmp_path_factory.mktemp("labels") / "text.km"
    assign_units(mfcc, codebook, speech / "wav.scp", output, shard_utts=5)
    return output


def rewrite(source, target, edit):
    """Copy labels with an edit and a sidecar that fits them again."""
    table = read_table(source)
    edit(table)
    write_table(target, table)
    sidecar = json.loads(source.with_name("text.km.json").read_text())
    sidecar["sha256"] = sha256_file(target)
    target.with_name("text.km.json").write_text(json.dumps(sidecar))
    return target


def test_labels_are_the_nearest_centroids_of_the_teachers_features(
    speech, mfcc, codebook, labels
):
    centroids = load_codebook(codebook).centroids.astype(float)
    table = read_table(labels)
    wav_scp = read_table(speech / "wav.scp")
    assert list(table) == sorted(wav_scp)
    for utt, path in wav_scp.items():
        features = mfcc.forward(read_speech(utt, path)).astype(float)
        distances = ((features[:, None] - centroids[None]) ** 2).sum(-1)
        expected = " ".join(map(str, distances.argmin(1)))
        assert table[utt] == expected


def test_two_processes_write_the_same_bytes_as_one(
    speech, mfcc, codebook, labels, tmp_path
):
    output = tmp_path / "text.km"
    assign_units(mfcc, codebook, speech / "wav.scp", output, nj=2, shard_utts=5)
    assert output.read_bytes() == labels.read_bytes()
    expected = labels.with_name("text.km.json").read_bytes()
    assert output.with_name("text.km.json").read_bytes() == expected
    names = {path.name for path in tmp_path.iterdir()}
    files = ("", ".json", ".done.json", ".prints.npy")
    assert names == {f"text.km{end}" for end in files}


def test_order_of_wav_scp_does_not_matter(speech, mfcc, codebook, labels, tmp_path):
    lines = (speech / "wav.scp").read_text().splitlines(keepends=True)
    (tmp_path / "wav.scp").write_text("".join(reversed(lines)))
    output = tmp_path / "text.km"
    assign_units(mfcc, codebook, tmp_path / "wav.scp", output)
    assert output.read_bytes() == labels.read_bytes()


def test_sidecar_tells_origin_and_size(speech, mfcc, codebook, labels):
    table = read_table(labels)
    assert read_sidecar(labels) == {
        "codebook_sha256": sha256_file(codebook),
        "teacher": "mfcc",
        "teacher_sha256": mfcc.identity["sha256"],
        "layer": 0,
        "K": K,
        "utterances": len(table),
        "frames": sum(len(line.split()) for line in table.values()),
        "sha256": sha256_file(labels),
    }


SLOW_RUN = """
import sys, time
from espnet2_lamer.units import assign, extractor
from espnet2_lamer.units.teacher import load_teacher
real = extractor.read_speech
def slow(*args):
    time.sleep(0.2)
    return real(*args)
extractor.read_speech = slow
assign.assign_units(load_teacher("mfcc"), *sys.argv[1:], shard_utts=3)
"""


def shard_of(marker):
    return marker.with_name(marker.name.replace(".done.json", ".txt"))


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    speech, mfcc, codebook, labels, tmp_path
):
    output = tmp_path / "text.km"
    arguments = [str(codebook), str(speech / "wav.scp"), str(output)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    shards = tmp_path / "text.km.shards"
    deadline = time.monotonic() + 300
    # In the middle: three of eight shards are there, the rest is not.
    while len(list(shards.glob("*.done.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {
        path: path.stat().st_mtime_ns
        for path in map(shard_of, shards.glob("*.done.json"))
    }
    assert not output.exists() and 3 <= len(done) < 8
    kept, rmtree = {}, shutil.rmtree

    def watch(*args, **kwargs):
        kept.update({path: path.stat().st_mtime_ns for path in done})
        return rmtree(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", watch)
        assign_units(mfcc, codebook, speech / "wav.scp", output, shard_utts=3)
    assert kept == done  # what was done is not done again
    assert output.read_bytes() == labels.read_bytes()
    assert not shards.exists()


def test_a_shard_changed_after_it_was_done_is_made_again(
    speech, mfcc, codebook, labels, tmp_path, monkeypatch
):
    output = tmp_path / "text.km"
    with monkeypatch.context() as patch:
        patch.setattr(
            assign_module, "atomic_path", lambda _: 1 / 0
        )  # dies before merging
        with pytest.raises(ZeroDivisionError):
            assign_units(mfcc, codebook, speech / "wav.scp", output, shard_utts=5)
    shard = tmp_path / "text.km.shards" / "00001.txt"
    shard.write_text(shard.read_text().replace(" 1 ", " 2 "))
    assign_units(mfcc, codebook, speech / "wav.scp", output, shard_utts=5)
    assert output.read_bytes() == labels.read_bytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [("teacher_sha256", "f" * 64), ("layer", 9), ("normalisation", "none")],
)
def test_a_codebook_of_another_teacher_is_refused(
    speech, mfcc, codebook, tmp_path, key, value
):
    book = load_codebook(codebook)
    path = tmp_path / "codebook.npz"
    save_codebook(path, book.centroids, book.metadata | {key: value})
    with pytest.raises(RecipeError, match=key.removeprefix("teacher_")):
        assign_units(mfcc, path, speech / "wav.scp", tmp_path / "text.km")
    assert not (tmp_path / "text.km").exists()


def test_a_codebook_of_another_dimension_is_refused(speech, mfcc, codebook, tmp_path):
    book = load_codebook(codebook)
    path = tmp_path / "codebook.npz"
    save_codebook(path, book.centroids[:, :13], book.metadata)
    with pytest.raises(RecipeError, match="dim 13"):
        assign_units(mfcc, path, speech / "wav.scp", tmp_path / "text.km")


@pytest.mark.parametrize(
    "fault", ["8 kHz", "stereo", "truncated", "too short", "NaN", "pipe"]
)
def test_unusable_audio_is_named(speech, mfcc, codebook, tmp_path, fault):
    path = tmp_path / "bad.wav"
    samples = np.zeros(300 if fault == "too short" else 8000)
    if fault == "stereo":
        samples = np.stack([samples, samples], axis=1)
    if fault == "NaN":
        samples[7] = np.nan
    rate = 8000 if fault == "8 kHz" else 16000
    soundfile.write(path, samples, rate, subtype="FLOAT")
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:20])
    value = "cat bad.wav |" if fault == "pipe" else str(path)
    write_table(tmp_path / "wav.scp", {"utt_bad": value})
    with pytest.raises(RecipeError, match="utt_bad"):
        assign_units(mfcc, codebook, tmp_path / "wav.scp", tmp_path / "text.km")
    assert not (tmp_path / "text.km").exists()


def test_an_error_in_a_worker_process_reaches_the_user(
    speech, mfcc, codebook, tmp_path
):
    (tmp_path / "bad.flac").write_bytes(b"not audio")
    table = read_table(speech / "wav.scp") | {"utt07": str(tmp_path / "bad.flac")}
    write_table(tmp_path / "wav.scp", table)
    output = tmp_path / "text.km"
    with pytest.raises(RecipeError, match="bad.flac: utterance 'utt07'"):
        assign_units(mfcc, codebook, tmp_path / "wav.scp", output, nj=2, shard_utts=5)
    assert not output.exists()


def test_token_list_line_number_is_the_unit(tmp_path):
    write_token_list(tmp_path / "tokens.txt", 3)
    assert (tmp_path / "tokens.txt").read_text() == "0\n1\n2\n<unk>\n<sos/eos>\n"


def test_fitting_labels_pass_the_check(speech, labels):
    assert check_labels(labels, K, speech / "utt2num_samples")["K"] == K


def drop(table):
    del table["utt03"]


def shorten(table):
    table["utt03"] = table["utt03"].rsplit(" ", 1)[0]


def set_first(unit):
    def edit(table):
        table["utt03"] = f"{unit} {table['utt03'].split(' ', 1)[1]}"

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (drop, "no labels for 1 of 24 utterances, first 'utt03'"),
        (shorten, "'utt03' has .* labels, expected"),
        (set_first(K), f"unit '{K}', expected 0 to {K - 1}"),
        (set_first("-1"), "unit '-1'"),
        (set_first("x"), "unit 'x'"),
        (set_first("01"), "unit '01'"),
        (lambda table: table.update(utt03=""), "'utt03' has no units"),
    ],
)
def test_labels_that_do_not_fit_are_refused(speech, labels, tmp_path, edit, reason):
    changed = rewrite(labels, tmp_path / "text.km", edit)
    with pytest.raises(RecipeError, match=reason):
        check_labels(changed, K, speech / "utt2num_samples")


def test_another_number_of_classes_is_refused(speech, labels):
    with pytest.raises(RecipeError, match=f"K is {K}, the model has 9"):
        check_labels(labels, 9, speech / "utt2num_samples")


def test_labels_changed_after_their_sidecar_are_refused(speech, labels, tmp_path):
    changed = rewrite(labels, tmp_path / "text.km", lambda table: None)
    changed.write_text(changed.read_text().replace(" 1 ", " 2 "))
    with pytest.raises(RecipeError, match="the labels were changed"):
        check_labels(changed, K, speech / "utt2num_samples")


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_missing_or_damaged_sidecar_is_refused(speech, labels, tmp_path, content):
    changed = rewrite(labels, tmp_path / "text.km", lambda table: None)
    sidecar = Path(f"{changed}.json")
    sidecar.unlink() if content is None else sidecar.write_text(content)
    with pytest.raises(RecipeError, match="text.km.json"):
        check_labels(changed, K, speech / "utt2num_samples")


def test_command_line_takes_the_layer_from_the_codebook(
    speech, codebook, labels, tmp_path
):
    output = tmp_path / "text.km"
    assign_units_bin.main(
        ["--teacher", "mfcc", "--codebook", str(codebook)]
        + ["--wav_scp", str(speech / "wav.scp"), "--output", str(output)]
    )
    assert output.read_bytes() == labels.read_bytes()


def copied(speech, target):
    """The speech in another folder, whose files may be changed."""
    table = {}
    for utt, path in read_table(speech / "wav.scp").items():
        table[utt] = str(target / f"{utt}.flac")
        shutil.copy(path, table[utt])
    write_table(target / "wav.scp", table)
    return table


def same_size(path, seed):
    """Replace the recording by another one whose file is as long and older."""
    data, rate = soundfile.read(path, dtype="int16")
    size = os.path.getsize(path)
    soundfile.write(path, np.roll(data, 1 + seed), rate, format="FLAC")
    with open(path, "ab") as handle:
        handle.write(bytes(max(0, size - os.path.getsize(path))))
    os.utime(path, (seed, seed))


def test_labels_of_unchanged_audio_are_kept(speech, mfcc, codebook, tmp_path, caplog):
    caplog.set_level("INFO")
    table = copied(speech, tmp_path)
    output = tmp_path / "text.km"
    assign_units(mfcc, codebook, tmp_path / "wav.scp", output)
    same_size(table["utt03"], 5)
    fresh = tmp_path / "fresh.km"
    expected = assign_units(mfcc, codebook, tmp_path / "wav.scp", fresh)
    found = assign_units(mfcc, codebook, tmp_path / "wav.scp", output)
    assert "the labels of 23 of 24 utterances are kept" in caplog.text
    assert output.read_bytes() == fresh.read_bytes() and found == expected


def test_labels_of_a_replaced_data_directory_are_kept(
    speech, mfcc, codebook, tmp_path, caplog
):
    """As stage 2 leaves them when a clip that was skipped comes back."""
    caplog.set_level("INFO")
    whole = copied(speech, tmp_path)
    tables = {"wav.scp": {u: p for u, p in whole.items() if u != "utt05"}}
    data = tmp_path / "set"
    FormattedSet(tables).write(data)
    assign_units(mfcc, codebook, data / "wav.scp", data / "text.km")
    FormattedSet({"wav.scp": whole}).write(data)
    # Nobody takes the old ones for units of this set.
    assert not (data / "text.km").exists()
    FormattedSet({"wav.scp": whole}).write(data)
    assign_units(mfcc, codebook, data / "wav.scp", data / "text.km")
    assert "the labels of 23 of 24 utterances are kept" in caplog.text
    assign_units(mfcc, codebook, data / "wav.scp", tmp_path / "fresh.km")
    assert (data / "text.km").read_bytes() == (tmp_path / "fresh.km").read_bytes()
    assert not list(data.glob("kept_*"))


def test_labels_that_were_changed_by_hand_are_not_kept(
    speech, mfcc, codebook, tmp_path, caplog
):
    caplog.set_level("INFO")
    table = copied(speech, tmp_path)
    output = tmp_path / "text.km"
    assign_units(mfcc, codebook, tmp_path / "wav.scp", output)
    expected = output.read_bytes()
    output.write_bytes(expected.replace(b" 1 ", b" 2 ", 1))
    same_size(table["utt03"], 0)
    assign_units(mfcc, codebook, tmp_path / "wav.scp", output)
    assert "are kept" not in caplog.text
    assert output.read_bytes() != expected.replace(b" 1 ", b" 2 ", 1)
