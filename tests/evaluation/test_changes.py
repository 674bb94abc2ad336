"""Verdicts say no more than the intervals do, and the first lines say all of them."""

import json
import re
from types import SimpleNamespace

import pytest

from espnet2_lamer.evaluation.changes import (
    GAINED,
    KEPT,
    LOST,
    UNTOLD,
    Change,
    Question,
    find_changes,
    five_lines,
    how_sure,
    text_picture,
)
from espnet2_lamer.evaluation.runs import Task
from espnet2_lamer.metrics.bootstrap import Difference

ENG = Task("asr", "eng", "char")
CMN = Task("asr", "cmn", "pinyin")
LID = Task("lid", "test", "most probable tag", part="cmn")
QUESTION = Question(
    "lamer", ("base", "control"), ("cmn",), ("eng",), {ENG: "eng", CMN: "cmn"}
)


def change(low, high, old=False, p=None, lang="cmn", task="recognition", middle=None):
    value = ((low or 0) + (high or 0)) / 2 if middle is None else middle
    return Change(lang, task, "char", "base", value, low, high, p, old, 40)


@pytest.mark.parametrize(
    ("low", "high", "old", "p", "expected"),
    [
        (0.1, 2.0, False, None, GAINED),
        (0.1, 2.0, True, None, GAINED),
        (-2.0, -0.1, False, None, LOST),
        (-2.0, -0.1, True, 0.01, LOST),
        # The interval leaves 0 out by a few utterances: McNemar's test disagrees.
        (0.1, 9.0, False, 0.125, UNTOLD),
        (-0.9, 0.4, True, None, KEPT),
        (-0.9, 0.4, False, None, UNTOLD),
        (-1.1, 0.4, True, None, UNTOLD),
        (-0.5, 9.0, True, None, KEPT),
        # Zero itself is an end: it is inside.
        (0.0, 2.0, False, None, UNTOLD),
        (-2.0, 0.0, True, None, UNTOLD),
        # No utterance differs: that rules nothing out.
        (0.0, 0.0, True, 1.0, UNTOLD),
        (None, None, True, None, UNTOLD),
    ],
)
def test_a_verdict_is_only_what_the_interval_bears(low, high, old, p, expected):
    assert change(low, high, old, p).verdict == expected


def figure(task, kind, comparisons, label="", gain="", system="lamer"):
    return SimpleNamespace(
        task=task,
        kind=kind,
        label=label,
        gain=gain,
        system=system,
        unit=task.unit,
        measure=SimpleNamespace(count=40),
        comparisons=comparisons,
    )


def versus(value, low, high, reference="base", p=0.01):
    return Difference(value, (low, high), p, "", reference)


def test_fewer_errors_and_higher_accuracy_are_both_gains():
    none = Task("", "", "")
    found = find_changes(
        QUESTION,
        [
            figure(
                ENG, "error rate", [versus(1.5, 0.5, 2.5), versus(-9, -9, -8, "random")]
            ),
            figure(CMN, "error rate", [versus(-2.0, -3.0, -1.0)]),
            figure(CMN, "error rate", [versus(-2.0, -3.0, -1.0)], system="base"),
            figure(LID, "accuracy", [versus(4.0, 1.0, 7.0)]),
            figure(none, "", [versus(3.0, 2.0, 4.0, "control")], "cmn", "masked units"),
            # Of no language, and of one that nobody asked for.
            figure(none, "", [versus(3.0, 2.0, 4.0)], "mean over languages"),
            figure(none, "", [versus(3.0, 2.0, 4.0)], "deu", "masked units"),
        ],
    )
    assert [(c.lang, c.task, c.reference, c.value, c.low, c.high) for c in found] == [
        ("cmn", "recognition", "base", 2.0, 1.0, 3.0),
        ("eng", "recognition", "base", -1.5, -2.5, -0.5),
        ("cmn", "identification by most probable tag", "base", 4.0, 1.0, 7.0),
        ("cmn", "masked units", "control", 3.0, 2.0, 4.0),
    ]
    assert [c.verdict for c in found] == [GAINED, LOST, GAINED, GAINED]


def test_identification_is_no_evidence_where_recordings_tell_the_languages():
    asked = Question("lamer", ("base",), ("cmn",), (), {CMN: "cmn"}, True)
    figures = [
        figure(LID, "accuracy", [versus(4.0, 1.0, 7.0)]),
        figure(CMN, "error rate", [versus(-2.0, -3.0, -1.0)]),
    ]
    assert [c.task for c in find_changes(asked, figures)] == ["recognition"]


def data_of(*changes, question=QUESTION, seeds=1):
    figures = [{"seeds": seeds, "track": "asr"}]
    rows = [c.as_dict() for c in changes]
    found = {"question": question.as_dict(), "changes": rows, "figures": figures}
    return json.loads(json.dumps(found))


def lines_of(*changes, **more):
    return {line.heading: line.text for line in five_lines(data_of(*changes, **more))}


def test_every_change_stands_in_the_line_of_its_verdict_with_its_interval():
    lines = lines_of(
        change(1.0, 3.0),
        change(-3.0, -1.0, task="phones"),
        change(-0.5, 0.5, old=True, lang="eng"),
        change(0.5, 1.5, old=True, lang="eng", task="phones"),
        change(-2.0, -1.0, old=True, lang="eng", task="masked units"),
        change(-1.0, 2.0, task="masked units"),
    )
    assert lines == {
        "New language gained": "recognition vs base: cmn +2.0 (+1.0 to +3.0)",
        "New language lost": "phones vs base: cmn -2.0 (-3.0 to -1.0)",
        "Old language kept": "recognition vs base: eng +0.0 (-0.5 to +0.5); "
        "and gained: phones vs base: eng +1.0 (+0.5 to +1.5)",
        "Old language lost": "masked units vs base: eng -1.5 (-2.0 to -1.0)",
        "Cannot be told": "masked units vs base: cmn +0.5 (-1.0 to +2.0)",
    }


def test_where_nothing_can_be_told_no_line_claims_anything():
    lines = lines_of(change(-1.0, 2.0), change(-3.0, 1.0, old=True, lang="eng"))
    assert {*lines.values()} - {lines["Cannot be told"]} == {"nothing that can be told"}
    assert lines["Cannot be told"].count("recognition") == 1
    assert not re.search("better|worse", " ".join(lines.values()))


def test_an_end_that_is_not_zero_is_not_written_as_zero():
    (line,) = [x for x in lines_of(change(0.04, 2.0)).values() if "cmn" in x]
    assert "(+0.04 to +2.0)" in line
    (line,) = [x for x in lines_of(change(-0.04, 2.0)).values() if "cmn" in x]
    assert "(-0.04 to +2.0)" in line


def test_many_languages_are_named_by_the_largest_changes_and_counted():
    many = [change(k, k + 2.0, lang=f"l{k:02}") for k in range(1, 21)]
    text = lines_of(*many)["New language gained"]
    assert text.endswith("; and 14 more, smaller ones")
    assert re.findall(r"l\d+", text) == [f"l{k}" for k in range(15, 21)]


def test_without_old_languages_nothing_is_said_to_be_kept():
    asked = Question("lamer", ("base",), ("cmn",), ())
    lines = five_lines(data_of(change(1.0, 3.0), question=asked))
    assert len(lines) == 5
    assert (
        lines[2].text == lines[3].text == "none was named, so nothing is said of them"
    )
    assert five_lines({"question": None}) == []


def test_one_training_run_is_said_to_leave_out_the_spread_of_trainings():
    text = how_sure(data_of(change(1.0, 3.0)))
    assert "one training run, and so is each head" in text
    assert "cover the test utterances only, not the spread between trainings" in text
    assert "trained with 3 seeds" in how_sure(data_of(change(1.0, 3.0), seeds=3))


def test_the_picture_puts_zero_ends_and_middle_in_their_places():
    rows = [change(-1.0, 4.0).as_dict(), change(-4.0, -2.0, lang="yue").as_dict()]
    title, axis, first, second = text_picture(rows, width=41).splitlines()
    assert title == "recognition vs base"
    start = axis.index("-4")
    assert axis.index("0", start) == start + 20
    # -4 to 4 on 41 cells: five to a point.
    assert first[start + 15] == "[" and first[start + 40] == "]"
    assert first[start + 20] == "+" and first[start + 28] == "o"
    assert second[start] == "[" and second[start + 10] == "]"
    assert second[start + 20] == "|"
    assert second.endswith("-3.0  lost")
