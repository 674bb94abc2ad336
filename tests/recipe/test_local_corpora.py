"""The command lines of public corpora, alone and as stage 1 of run.sh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from espnet2_lamer.data.corpora import CORPORA
from espnet2_lamer.fileio.datadir import read_table
from tests.corpus_trees import (
    write_lines,
    write_noise,
    write_paper_corpora,
    write_thchs30,
)

_ROOT = Path(__file__).parents[2]
_RECIPE = _ROOT / "egs2" / "lamer_ssl" / "ssl1"


def _environment(**paths):
    unset = dict.fromkeys((*CORPORA.values(), "MHUBERT147_AUDIO", "MLSUPERB"), "")
    return {**os.environ, **unset, **paths, "PYTHONPATH": str(_ROOT)}


def _local(corpus, cwd, *options, **paths):
    return subprocess.run(
        [sys.executable, str(_ROOT / "local/data.py"), corpus, *map(str, options)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=_environment(**paths),
    )


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_corpus_says_which_variable_and_option_it_needs(tmp_path, corpus):
    result = _local(corpus, tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    message = f"{corpus}: nothing says where it is; set {CORPORA[corpus]} in db.sh"
    assert message in result.stderr and "--root" in result.stderr
    assert not (tmp_path / "data").exists()


def test_help_shows_the_options_with_defaults(tmp_path):
    result = _local("mhubert147", tmp_path, "--help")
    assert result.returncode == 0
    for option in ("--root", "--output", "--langs", "--max_missing", "--nj"):
        assert option in result.stdout
    assert "(default: cv thchs30 aishell aishell3)" in " ".join(result.stdout.split())


@pytest.mark.parametrize("value", ["101", "-1", "many"])
def test_a_share_that_is_none_is_wrong_usage(tmp_path, value):
    result = _local("thchs30", tmp_path, "--root", tmp_path, f"--max_missing={value}")
    assert result.returncode == 2
    assert "--max_missing" in result.stderr and value in result.stderr


def test_the_command_line_wins_over_the_environment(tmp_path):
    root = write_thchs30(tmp_path)
    (root / "train/A11_9.wav.trn").write_text("../data/A11_9.wav.trn\n")
    options = ("--root", root, "--langs", "cmn", "--output", "out", "--nj", 2)
    result = _local("thchs30", tmp_path, *options, THCHS30="/nowhere")
    assert result.returncode == 1
    assert "1 of 3 rows cannot be used (33.33 %), expected at most 1 %" in result.stderr
    result = _local(
        "thchs30", tmp_path, *options, "--max_missing", 34, THCHS30="/nowhere"
    )
    assert result.returncode == 0, result.stderr
    assert "1 missing" in result.stderr
    wavs = read_table(tmp_path / "out/pretrain/thchs30/train_cmn/wav.scp")
    assert list(wavs) == ["thchs30_A11_0", "thchs30_A11_1"]


def test_manifests_are_read_with_audio_and_datasets_of_the_command_line(tmp_path):
    write_noise(tmp_path / "clips/a.wav")
    rows = ["a.wav\t3200\tyue\tmine", "b.wav\t3200\tyue\tCV"]
    manifest = write_lines(tmp_path / "m.tsv", "/nowhere", *rows)
    result = _local(
        "mhubert147",
        tmp_path,
        *("--root", manifest, "--langs", "yue", "--datasets", "mine"),
        MHUBERT147_AUDIO="clips",
    )
    assert result.returncode == 0, result.stderr
    wavs = read_table(tmp_path / "data/pretrain/mhubert147/train_yue/wav.scp")
    assert wavs == {"mhubert147_mine_a": str(tmp_path / "clips/a.wav")}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The paper's corpora, tiny, and a function that runs stages on them."""
    root = tmp_path_factory.mktemp("archives")
    archives = write_paper_corpora(root)

    def run(out, *options, **paths):
        folders = [
            word
            for name in ("data", "dump", "exp")
            for word in (f"--{name}dir", str(out / name))
        ]
        return subprocess.run(
            [
                *("./run.sh", "--preset", "paper", "--python", sys.executable),
                *(*folders, "--nj", "1", *options),
            ],
            cwd=_RECIPE,
            capture_output=True,
            text=True,
            env=_environment(**{**archives, **paths}),
        )

    run.paths = archives
    return run


def test_stages_1_and_2_of_the_paper_preset_run_on_archives(archives, tmp_path):
    result = archives(tmp_path, "--stage", "1", "--stop_stage", "2")
    assert result.returncode == 0, result.stdout + result.stderr
    hours = json.loads((tmp_path / "dump/raw/hours.json").read_text())["languages"]
    # CommonVoice's validated clips but dev and test, and the others' training sets.
    assert {lang: entry["utterances"] for lang, entry in hours.items()} == {
        **{"yue": 2 * 2, "cmn": 2 + 2 + 3 + 3, "eng": 2}
    }
    sources = set(read_table(tmp_path / "dump/raw/ssl_train/utt2source").values())
    assert sources == {"thchs30", "aishell1", "aishell3"} | {
        f"commonvoice-{locale}" for locale in ("en", "zh-CN", "zh-HK", "yue")
    }
    assert hours["cmn"]["decoded"] == 2 and hours["cmn"]["resampled"] == 2 + 3
    report = json.loads((tmp_path / "data/fleurs.json").read_text())
    assert len(report["sets"]) == 9 and all("eval/" in name for name in report["sets"])

    again = archives(tmp_path, "--stage", "1", "--stop_stage", "1")
    assert "stage 1: data preparation: done, nothing changed" in again.stderr
    moved = archives(
        tmp_path, "--stage", "1", "--stop_stage", "1", THCHS30=str(tmp_path)
    )
    assert moved.returncode == 1
    assert "runs again: --corpus_paths" in moved.stderr
    assert "expected train of thchs30; correct THCHS30 in db.sh" in moved.stderr


def test_clips_that_ml_superb_renamed_are_kept_out_of_pretraining(archives, tmp_path):
    clips = Path(archives.paths["COMMONVOICE"]) / "zh-HK" / "clips"
    samples, rate = soundfile.read(clips / "common_voice_zh-HK_3.mp3")
    folder = tmp_path / "superb" / "commonvoice" / "yue"
    (folder / "wav").mkdir(parents=True)
    for split in ("dev", "test"):
        utt = f"cv_yue_00000{len(split)}"
        soundfile.write(folder / "wav" / f"{utt}.wav", samples, rate)
        write_lines(folder / f"transcript_10min_{split}.txt", f"{utt} - 另外一句")
    superb = {"MLSUPERB": str(tmp_path / "superb")}
    result = archives(tmp_path, "--stage", "1", "--stop_stage", "2", **superb)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (tmp_path / "dump/raw/overlap.tsv").read_text().splitlines()[1:]
    found = {tuple(line.split("\t")[:4]) for line in lines}
    clip = "commonvoice_common_voice_zh-HK_3"
    assert found == {
        (clip, "yue", "audio", f"mlsuperb/commonvoice/{split}_yue")
        for split in ("dev", "test")
    }
    assert clip not in read_table(tmp_path / "dump/raw/ssl_train/wav.scp")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("mhubert147", "mhubert147: nothing says where it is; set MHUBERT147_MANI"),
        (" ", "names none; give one, or several of mini, manifest"),
        (
            "librispeech",
            "--corpus librispeech: no such corpus, expected mini, manifest",
        ),
    ],
)
def test_corpora_that_cannot_be_prepared_are_named(archives, tmp_path, corpus, message):
    stage = ("--stage", "1", "--stop_stage", "1", "--corpus", corpus)
    result = archives(tmp_path, *stage)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "data/train_cmn").exists()
