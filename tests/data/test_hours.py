"""The hours report."""

import pytest

from espnet2_lamer.data.formatting import FormattedSet
from espnet2_lamer.data.selection import PAPER_HOURS, log_hours


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
    log_hours(hours)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    log_hours(hours, compare=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    # English: 0.6 % less, within the tolerance of 1 %.
    assert warnings == [
        "cmn: 330.000 h, 11.867 h (3.5 %) less than the paper's 341.867 h"
    ]


def test_a_language_of_the_paper_that_is_absent_is_warned_about(caplog):
    log_hours(_hours(yue=120.0, cmn=341.9), compare=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == [
        "yue: 120.000 h, 14.928 h (14.2 %) more than the paper's 105.072 h",
        "eng: none, the paper has 100.555 h",
    ]


def test_corpora_are_listed_below_their_language(caplog):
    with caplog.at_level("INFO"):
        log_hours(_hours(yue=105.072, deu=3.0))
    lines = [r.getMessage() for r in caplog.records]
    assert "paper 105.072" in lines[1] and "cv" in lines[2] and "7 utt" in lines[2]
    assert lines[3].endswith("paper -")
