"""Cases of audio and corpora, where a folder of them is there (LAMER_CASES)."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.converting import prepare_audio
from espnet2_lamer.data.corpora.prepare import prepare
from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.selection import Selection, prepare_ssl_data
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table

ROOT = Path(__file__).parents[2]
CASES = Path(os.environ.get("LAMER_CASES", ROOT.parent / "shared" / "cases"))
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases here")
MINI = ROOT / "egs2/lamer_ssl/ssl1/mini"
# What is said of those files of audio_zoo that cannot be used.
_REFUSED = {
    "size0": "header lies about the length: it promises 0 bytes",
    "cat": "lies about its length: header promises 166 MPEG frames, 333 there",
    "nan": "holds NaN or infinite samples",
    "inf": "holds NaN or infinite samples",
    "html": "an HTML page",
    "lfs": "a git-lfs pointer",
    "lie": "truncated: header promises 158760 bytes of samples",
}


def _select(manifest, tmp_path, **options):
    prepare_manifest(manifest, tmp_path / "data")
    selection = Selection(["cmn"], ["eng"], 1.0, **options)
    return prepare_ssl_data(tmp_path / "data", tmp_path / "dump", selection)


def test_every_file_of_the_zoo_is_its_source_or_refused_for_the_true_reason(tmp_path):
    lines = (CASES / "audio_zoo/manifest.tsv").read_text().splitlines()[1:]
    wavs = {
        u: str(CASES / "audio_zoo" / p) for u, p, _ in (x.split("\t") for x in lines)
    }
    found = {}
    for utt, path in wavs.items():
        try:
            found |= prepare_audio({utt: path}, "d/wav.scp", tmp_path)
        except RecipeError as error:
            assert _REFUSED.pop(utt) in str(error)
    assert not _REFUSED
    changed = {
        k: {u for u in found if getattr(found[u], k)}
        for k in ("rescaled", "one_channel")
    }
    assert changed == {
        "rescaled": {"floatbig"},
        "one_channel": {"antiphase", "antiphase_noise"},
    }
    assert found["flac_unknown"].decoded
    assert found["tiny"].num_samples < 400
    for utt, audio in found.items():
        # soundfile alone cannot read what does not say its length.
        if utt in ("tiny", "flac_unknown") or audio.resampled:
            continue
        source, _ = soundfile.read(wavs[utt], frames=audio.num_samples, always_2d=True)
        expected = source[:, 0] if audio.one_channel else source.mean(1)
        heard, rate = soundfile.read(audio.path)
        assert rate == 16000 and len(heard) == audio.num_samples
        expected = expected / (2**15 if audio.rescaled else 1)
        assert np.abs(heard - expected).max() < 1e-3, utt


def test_absurd_samples_stop_stage_2_by_name(tmp_path):
    with pytest.raises(RecipeError, match=r"2 of 7 .*(?s:.*)c05\.wav: absurd .*3e\+38"):
        _select(CASES / "huge_float_sample/manifest_small.tsv", tmp_path)
    hours = _select(
        CASES / "huge_float_sample/manifest.tsv", tmp_path, max_bad_audio=30.0
    )
    assert hours["languages"]["cmn"]["lost"]["absurd samples"]["utterances"] == 2
    assert not {"c05", "c06"} & set(read_table(tmp_path / "dump/raw/ssl_train/wav.scp"))


def test_clips_without_a_frame_go_by_name(tmp_path, caplog):
    _select(CASES / "very_short_clips/manifest.tsv", tmp_path, min_s=0.01)
    samples = read_table(tmp_path / "dump/raw/ssl_train/utt2num_samples")
    samples |= read_table(tmp_path / "dump/raw/ssl_dev/utt2num_samples")
    assert len(samples) == 28 and min(map(int, samples.values())) == 400
    assert "c10\t" in (tmp_path / "dump/raw/skipped_audio.tsv").read_text()


@pytest.mark.slow
def test_an_hour_is_dropped_by_its_header_in_the_memory_of_the_others(tmp_path):
    subprocess.run(
        [sys.executable, CASES / "long_recording/make.py", tmp_path / "hour.wav", "60"],
        check=True,
    )
    clip = CASES / "huge_float_sample/a"
    rows = [f"{n}\t{clip}/c{n:02d}.wav\tcmn" for n in (0, 1, 2, 3, 7, 8)]
    rows += [f"e{n}\t{clip}/e{n:02d}.wav\teng" for n in range(6)]
    rows += [f"hour\t{tmp_path}/hour.wav\tcmn"]
    lines = ["utt_id\tpath\tlang\tsplit"]
    dev = ("0\t", "e0\t")
    lines += [f"{row}\t{'dev' if row.startswith(dev) else 'train'}" for row in rows]
    (tmp_path / "m.tsv").write_text("\n".join(lines) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hours = _select(tmp_path / "m.tsv", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert not list((tmp_path / "dump/raw/audio").rglob("*.flac"))
    lost = hours["languages"]["cmn"]["lost"]["longer than 30 s"]
    assert lost == {"utterances": 1, "hours": 1.0}


def test_suffixes_are_read_or_counted(tmp_path):
    stats = prepare_manifest(CASES / "folder_other_suffixes", tmp_path / "data")
    assert stats["used"] == 36
    assert stats["dropped"]["suffix .m4a, not read"] == {"cmn": 1}


def test_half_an_aishell_names_what_is_packed(tmp_path):
    with pytest.raises(RecipeError, match=r"(?s:.*)S0004\.tar\.gz\n  S0005\.tar\.gz"):
        prepare("aishell1", CASES / "aishell_half_unpacked", tmp_path, ["cmn"])


def test_thchs30_pointers_are_followed(tmp_path):
    prepare("thchs30", CASES / "thchs_pointer_crlf", tmp_path, ["cmn"])
    folder = tmp_path / "pretrain/thchs30/train_cmn"
    assert len(read_table(folder / "wav.scp")) == 4
    assert set(read_table(folder / "text").values()) == {"绿是阳春"}


def test_commonvoice_17_is_read_without_its_writer_s_quotes(tmp_path):
    report = prepare("commonvoice", CASES / "cv17_quotes", tmp_path, ["cmn", "eng"])
    for lang in ("cmn", "eng"):
        sets = [f"pretrain/train_{lang}", f"eval/dev_{lang}", f"eval/test_{lang}"]
        assert sum(report["sets"][name]["utterances"] for name in sets) == 12
        assert report["pretraining_hours"][lang] is None
    texts = {}
    for split in ("train", "dev", "test"):
        texts |= read_table(tmp_path / f"eval/commonvoice/{split}_eng/text")
    found = {utt[-4:]: text for utt, text in texts.items()}
    assert found["1001"] == '"Good-bye," said the boy.' and "1005" not in found
    assert found["1002"] == 'He said "no".'


def test_lfs_pointers_are_called_that(tmp_path):
    langs = ["cmn", "eng"]
    prepare("commonvoice", CASES / "cv_git_lfs_clips", tmp_path / "data", langs)
    pretrain = tmp_path / "data/pretrain/commonvoice/train_cmn"
    with pytest.raises(RecipeError, match="8 of 8 .*(?s:.*)a git-lfs pointer"):
        prepare_audio(
            read_table(pretrain / "wav.scp"), pretrain / "wav.scp", tmp_path / "audio"
        )


@pytest.mark.parametrize(
    "audio, reason",
    [
        ("extract_truncated_wav/trunc.wav", "truncated: header promises 48000"),
        ("extract_silence_by_rate/silence.wav", "silent"),
        ("extract_silence_by_rate/s48.wav", ""),
        ("audio_zoo/a/antiphase.wav", ""),
    ],
)
def test_extract_follows_stage_2(audio, reason, tmp_path, caplog):
    from espnet2_lamer.bin.extract import main

    output = tmp_path / "f.npz"
    command = [str(CASES / audio), f"--model={MINI / 'base'}", "--layer=1"]
    command.append(f"--output={output}")
    if not reason:
        main(command)
        assert output.exists() and "channels cancel" in caplog.text
        return
    with pytest.raises(RecipeError, match=reason):
        main(command)
    assert not output.exists()


@pytest.mark.slow
def test_a_teacher_of_nan_is_refused_at_stage_0(tmp_path):
    from espnet2_lamer.recipe.base_training import check_weights

    teacher = tmp_path / "teacher"
    make = [sys.executable, CASES / "nan_teacher/make.py", MINI / "teacher", teacher]
    subprocess.run(make, check=True)
    paths = {"base": MINI / "base", "teacher": teacher}
    records = {k: {"path": str(v), "sha256": "0"} for k, v in paths.items()}
    with pytest.raises(RecipeError, match="teacher/model.safetensors: 1 of .*NaN"):
        check_weights(records)
