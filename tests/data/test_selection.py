"""Replay sampling and the data of continual pretraining."""

import json

import numpy as np
import pytest

from espnet2_lamer.data.selection import PAPER_HOURS, prepare_ssl_data, sample_replay
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table


def _durations(count, seed=0):
    seconds = np.random.default_rng(seed).uniform(2, 30, count)
    return {f"u{n:05d}": float(s) for n, s in enumerate(seconds)}


def test_replay_lasts_the_hours_asked_for_within_one_utterance():
    durations = _durations(2000)
    chosen = sample_replay(durations, 3.0, seed=0)
    seconds = sum(durations[u] for u in chosen)
    assert 3 * 3600 <= seconds < 3 * 3600 + 30


def test_replay_is_reproducible_and_follows_the_seed():
    durations = _durations(500)
    backwards = dict(reversed(durations.items()))
    first = sample_replay(durations, 0.5, seed=1)
    assert sample_replay(backwards, 0.5, seed=1) == first
    assert sample_replay(durations, 0.5, seed=2) != first


def test_replay_draws_every_utterance_equally_often():
    durations = _durations(60)
    hours = sum(durations.values()) / 3600 / 3
    counts = dict.fromkeys(durations, 0)
    for seed in range(600):
        for utt in sample_replay(durations, hours, seed):
            counts[utt] += 1
    share = np.array([counts[u] for u in sorted(counts)]) / 600
    # Independent of length: each has the mean probability within 5 standard errors.
    assert np.abs(share - share.mean()).max() < 5 * np.sqrt(share.mean() / 600)
    assert abs(np.corrcoef(share, list(durations.values()))[0, 1]) < 0.4


def test_a_language_with_less_is_taken_whole_and_nothing_twice():
    durations = _durations(10)
    assert sample_replay(durations, 100.0, seed=0) == set(durations)


@pytest.fixture
def three(make_set, tmp_path):
    for lang, count in (("eng", 20), ("cmn", 3), ("yue", 2)):
        make_set("train", lang, [3.0] * count)
        make_set("dev", lang, [3.0])
    return tmp_path


def _prepare(root, hours=30 / 3600, seed=0, new=("cmn", "yue"), replay=("eng",)):
    return prepare_ssl_data(
        root / "data", root / "dump", list(new), list(replay), hours, seed=seed
    )


def test_new_languages_are_whole_and_the_old_one_is_sampled(three):
    hours = _prepare(three)
    langs = list(read_table(three / "dump/raw/ssl_train/utt2lang").values())
    assert [langs.count(lang) for lang in ("cmn", "eng", "yue")] == [3, 10, 2]
    dev = list(read_table(three / "dump/raw/ssl_dev/utt2lang").values())
    assert sorted(dev) == ["cmn", "eng", "yue"]
    assert hours == json.loads((three / "dump/raw/hours.json").read_text())
    english = hours["languages"]["eng"]
    assert english["role"] == "replay" and not english["whole_language"]
    assert english["hours"] == pytest.approx(30 / 3600, abs=1e-4)
    assert english["available_hours"] == pytest.approx(60 / 3600, abs=1e-4)
    assert hours["languages"]["yue"]["role"] == "new"


def test_the_paper_s_hours_stand_beside_ours(three):
    languages = _prepare(three)["languages"]
    assert {k: v["paper_hours"] for k, v in languages.items()} == PAPER_HOURS
    assert PAPER_HOURS == {"yue": 105.072, "cmn": 341.867, "eng": 100.555}


def test_the_same_seed_writes_the_same_files(three):
    contents = []
    for seed in (0, 0, 1):
        _prepare(three, seed=seed)
        files = sorted((three / "dump/raw/ssl_train").iterdir())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1] != contents[2]


def test_too_little_replay_is_used_whole_and_reported(three, caplog):
    with caplog.at_level("INFO"):
        english = _prepare(three, hours=100.0)["languages"]["eng"]
    assert english["whole_language"] and english["utterances"] == 20
    assert "the whole language is used, nothing is repeated" in caplog.text


def test_replay_is_drawn_from_utterances_of_usable_length(make_set, tmp_path):
    make_set("train", "eng", [1.0] * 5 + [3.0] * 5)
    make_set("train", "cmn", [3.0])
    for lang in ("eng", "cmn"):
        make_set("dev", lang, [3.0])
    english = _prepare(tmp_path, hours=15 / 3600, new=["cmn"])["languages"]["eng"]
    assert english["utterances"] == 5
    assert english["dropped_short"] == 5


def test_missing_language_names_file_stage_and_option(three):
    with pytest.raises(RecipeError, match=r"train_deu.wav\.scp: file not found.*deu"):
        _prepare(three, new=["cmn", "deu"])
    assert not (three / "dump").exists()


def test_language_without_utterances_is_named(three):
    (three / "data/train_yue/wav.scp").write_text("")
    with pytest.raises(RecipeError, match="train_yue.*language yue has no train"):
        _prepare(three)


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("lang", ["yue", "eng"])
def test_language_with_nothing_between_2_and_30_s_is_named(
    three, make_set, split, lang
):
    make_set(split, lang, [1.0, 1.5])
    with pytest.raises(RecipeError, match=rf"{split}_{lang}.* {lang} .*2 and 30 s"):
        _prepare(three)
    assert not (three / "dump/raw/ssl_train").exists()


def test_an_id_in_two_languages_is_refused(three):
    utts = read_table(three / "data/train_cmn/wav.scp")
    write_table(three / "data/dev_yue/wav.scp", utts)
    with pytest.raises(RecipeError, match="dev_yue.*'cmn_train_000' is also in"):
        _prepare(three)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"new": ["cmn", "eng"]}, "eng named twice"),
        ({"new": []}, "--new_langs: empty"),
        ({"hours": 0.0}, "--replay_hours: found 0"),
    ],
)
def test_contradicting_options_are_refused(three, options, message):
    with pytest.raises(RecipeError, match=message):
        _prepare(three, **options)


def test_training_without_replay_needs_no_hours(three):
    languages = _prepare(three, hours=0.0, replay=[])["languages"]
    assert set(languages) == {"cmn", "yue"}
