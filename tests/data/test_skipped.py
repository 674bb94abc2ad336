"""How much unusable audio a set may have, and how it is listed."""

import pytest

from espnet2_lamer.data.audio import SkippedAudio, allowed_bad
from espnet2_lamer.errors import RecipeError


@pytest.mark.parametrize(
    "files, percent, allowed",
    [
        (3, 1.0, 0),  # one of three is a third of the data
        (9, 1.0, 0),
        (10, 1.0, 1),  # a single file never stops a set of ten or more
        (199, 1.0, 1),
        (200, 1.0, 2),
        (300_000, 1.0, 3000),
        (300_000, 0.0, 0),
        (1000, 0.5, 5),
        (4, 50.0, 2),
    ],
)
def test_the_share_is_rounded_down_but_one_file_is_let_pass(files, percent, allowed):
    assert allowed_bad(files, percent) == allowed


def _set(name, count):
    return f"data/{name}/wav.scp", {f"u{n:03d}": f"{n}.wav" for n in range(count)}


def test_the_report_lists_every_utterance_sorted_whatever_the_order(tmp_path):
    skipped = SkippedAudio(tmp_path / "skipped.tsv")
    skipped.add(*_set("train_yue", 300), {"u009": "b", "u002": "two\nlines"})
    skipped.add(*_set("train_cmn", 300), {"u001": "a"})
    skipped.write()
    assert (tmp_path / "skipped.tsv").read_text().splitlines() == [
        "set\tutt_id\tpath\treason",
        "train_cmn\tu001\t1.wav\ta",
        "train_yue\tu002\t2.wav\ttwo lines",
        "train_yue\tu009\t9.wav\tb",
    ]
    assert skipped.counts == {"train_cmn": 1, "train_yue": 2}


def test_counts_are_logged(tmp_path, caplog):
    skipped = SkippedAudio(tmp_path / "skipped.tsv")
    skipped.add(*_set("train_yue", 300), {"u009": "b", "u002": "a"})
    skipped.write()
    assert "train_yue: 2 of 300 utterances skipped" in caplog.text


def test_too_much_stops_the_run_with_the_whole_list(tmp_path):
    report = tmp_path / "skipped.tsv"
    wav_scp, wavs = _set("train_yue", 1000)
    problems = {f"u{n:03d}": "truncated" for n in range(11)}
    with pytest.raises(RecipeError) as caught:
        SkippedAudio(report).add(wav_scp, wavs, problems)
    message = str(caught.value)
    assert message.startswith("data/train_yue/wav.scp: 11 of 1000 audio files cannot")
    assert "--max_bad_audio 1 lets 10 of 1000 pass" in message
    assert str(report) in message and "u000 0.wav: truncated" in message
    assert len(report.read_text().splitlines()) == 12
    SkippedAudio(report, 2.0).add(wav_scp, wavs, problems)


def test_two_checks_of_a_set_count_together(tmp_path):
    skipped = SkippedAudio(tmp_path / "skipped.tsv")
    wav_scp, wavs = _set("train_yue", 200)
    skipped.add(wav_scp, wavs, {"u000": "file not found", "u001": "empty"})
    left = {utt: path for utt, path in wavs.items() if utt > "u001"}
    with pytest.raises(RecipeError, match="1 of 198"):
        skipped.add(wav_scp, left, {"u002": "truncated"})


def test_a_sound_set_is_never_stopped_by_another_one(tmp_path):
    skipped = SkippedAudio(tmp_path / "skipped.tsv")
    skipped.add(*_set("train_yue", 200), {"u000": "a", "u001": "a"})
    skipped.add(*_set("train_cmn", 200), {"u000": "a", "u001": "a"})
    skipped.add(*_set("train_eng", 3), {})
