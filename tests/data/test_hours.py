"""The hours report."""

import pytest

from espnet2_lamer.data.formatting import FormattedSet
from espnet2_lamer.data.hours import PAPER_HOURS, log_hours, lost_hours
from espnet2_lamer.data.overlap import Clip


def test_hours_are_summed_per_language_and_corpus():
    minute = 16000 * 60
    formatted = FormattedSet(
        {
            "utt2lang": {"a": "yue", "b": "yue", "c": "yue", "d": "eng"},
            "utt2source": {"a": "cv-yue", "b": "cv-zh-HK", "c": "cv-yue"},
            "utt2num_samples": {
                utt: str(n * minute)
                for utt, n in {"a": 6, "b": 3, "c": 12, "d": 30}.items()
            },
        }
    )
    assert formatted.hours_by_source() == {
        "yue": {
            "cv-yue": {"utterances": 2, "hours": 0.3},
            "cv-zh-HK": {"utterances": 1, "hours": 0.05},
        },
        "eng": {"-": {"utterances": 1, "hours": 0.5}},
    }


def _hours(**languages):
    return {
        "languages": {
            lang: {
                "role": "new",
                "hours": hours,
                "available_hours": hours,
                "found_hours": hours,
                "not_drawn_hours": 0.0,
                "lost": {},
                "lost_percent": 0.0,
                "whole_language": True,
                "paper_hours": PAPER_HOURS.get(lang),
                "sources": {"cv": {"utterances": 7, "hours": hours}},
            }
            for lang, hours in languages.items()
        }
    }


def test_the_paper_s_hours_are_those_of_its_section_3_1():
    assert PAPER_HOURS == {"yue": 105.072, "cmn": 341.867, "eng": 100.555}
    assert sum(PAPER_HOURS.values()) == pytest.approx(547.494)


def test_differences_from_the_paper_are_warned_about_where_it_is_compared(caplog):
    hours = _hours(yue=105.072, cmn=330.0, eng=100.0)
    log_hours(hours, "s.tsv")
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    log_hours(hours, "s.tsv", compare=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    # English: 0.6 % less, within the tolerance of 1 %.
    assert warnings == [
        "cmn: 330.000 h, 11.867 h (3.5 %) less than the paper's 341.867 h"
    ]


def test_a_language_of_the_paper_that_is_absent_is_warned_about(caplog):
    log_hours(_hours(yue=120.0, cmn=341.9), "s.tsv", compare=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == [
        "yue: 120.000 h, 14.928 h (14.2 %) more than the paper's 105.072 h",
        "eng: none, the paper has 100.555 h",
    ]


def test_corpora_are_listed_below_their_language(caplog):
    with caplog.at_level("INFO"):
        log_hours(_hours(yue=105.072, deu=3.0), "s.tsv")
    lines = [r.getMessage() for r in caplog.records]
    assert "paper 105.072" in lines[1] and "cv" in lines[2] and "7 utt" in lines[2]
    assert lines[3].endswith("paper -")


def test_every_hour_that_is_found_is_used_not_drawn_or_lost_for_a_reason():
    seconds = {
        **{f"used{n}": 3600.0 for n in range(6)},
        **{"short": 1800.0, "long": 9000.0, "tested": 3600.0, "cut": 3600.0},
    }
    clips = [Clip(utt, f"{utt}.wav", "cmn", s) for utt, s in seconds.items()]
    reasons = {"cut": "truncated: header promises 9", "gone": "file not found"}
    used = {utt for utt in seconds if utt.startswith("used")}
    limits, drawn = (2000.0, 8000.0), set(seconds)
    entry = lost_hours(clips, used, drawn, {"tested"}, {"cmn": reasons}, limits)["cmn"]
    average = (6 + 0.5 + 2.5 + 1 + 1) / 10
    assert entry["lost"] == {
        "longer than 8000 s": {"utterances": 1, "hours": 2.5},
        "file not found": {"utterances": 1, "hours": average},
        "in an evaluation set": {"utterances": 1, "hours": 1.0},
        "truncated": {"utterances": 1, "hours": 1.0},
        "shorter than 2000 s": {"utterances": 1, "hours": 0.5},
    }
    assert entry["found_hours"] == 11 + average and entry["not_drawn_hours"] == 0
    assert entry["lost_percent"] == round(100 * (1 - 6 / (11 + average)), 2)
    # Of a draw of three of the six, one is lost: a third, beside what the pool lost.
    drawn = {"used0", "used1", "used2"}
    reasons = {"used2": "silent: all samples are zero"}
    options = {"tested"}, {"cmn": reasons}, limits
    entry = lost_hours(clips, {"used0", "used1"}, drawn, *options)["cmn"]
    assert entry["not_drawn_hours"] == 4.0  # the other three, and "cut"
    pool = (11 - 4.0) / 11
    assert entry["lost_percent"] == round(100 * (1 - pool * 2 / 3), 2)


def test_a_language_that_loses_more_than_5_per_cent_is_warned_about(caplog):
    hours = _hours(yue=105.0, cmn=341.9)
    for lang, percent in (("yue", 5.0), ("cmn", 5.1)):
        lost = {"truncated": {"utterances": 3, "hours": 17.0}}
        hours["languages"][lang] |= {"lost": lost, "lost_percent": percent}
    log_hours(hours, "dump/raw/skipped_audio.tsv")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "cmn: 5.1 % of its hours are lost: 17.000 h truncated"
    )
