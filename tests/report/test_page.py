"""The page of a run shows what results.json and the folder hold, in one file."""

import json
import re

import pytest

from espnet2_lamer.bin import report
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.report.clips import listening_examples
from espnet2_lamer.report.experiment import find_results, panels, report_page
from tests.report.offline import check_page
from tests.report.small_run import LANGS, UTTS, asr_run, write_run


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "exp"
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def page(exp):
    return report_page(exp, exp / "results.json")


def test_the_command_writes_one_file_that_loads_nothing(exp, tmp_path):
    output = tmp_path / "page.html"
    report.main(["--expdir", str(exp), "--output", str(output)])
    text = output.read_text(encoding="utf-8")
    assert check_page(text) == 2
    assert len(text) < 1_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_five_lines_come_first_then_the_picture_then_tables_then_conditions(page):
    found = re.findall(r'<li class="(\w+)"><b>([^<]+)</b>', page)
    assert found == [
        ("gained", "New languages gained"),
        ("nothing", "New languages lost"),
        ("kept", "Old language kept"),
        ("lost", "Old language lost"),
        ("untold", "Cannot be told"),
    ]
    marks = ['class="lines"', 'class="panels"', 'id="tables"', 'id="conditions"']
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    for text in ("made up", "a box, 2 cores", "A caveat.", "A note."):
        assert text in page


def test_every_change_has_a_mark_and_its_verdict_in_words(exp, page):
    changes = json.loads((exp / "results.json").read_text())["changes"]
    assert page.count('<svg class="mark ') == len(changes) == 9
    for c in changes:
        said = f"{round(c['value'], 1) + 0.0:+.1f} {c['verdict']}"
        assert f'<td class="said">{said}</td>' in page


def test_marks_lie_where_their_points_are():
    row = {"lang": "cmn", "old": False, "task": "recognition", "reference": "base"}
    row |= {"value": 1.0, "low": -2.0, "high": 4.0, "verdict": "cannot be told"}
    (panel,) = panels([row])
    assert panel["reach"] == 4
    (mark,) = panel["rows"]
    # 2 to 98 per cent of the width are -4 to +4 points.
    assert (mark["low"], mark["at"], mark["high"]) == (26, 62, 98)


def test_tables_have_at_most_six_columns(page):
    body = page[page.index('id="tables"') : page.index("<details>")]
    widths = [head.count("<th ") for head in re.findall("<thead>.*?</thead>", body)]
    assert len(widths) == 4 and max(widths) <= 6


def test_clips_are_spread_over_the_order_of_change(exp):
    names = [asr_run(lang, s).name for lang in LANGS for s in ("base", "lamer")]
    found = listening_examples(exp, names, "lamer", ["yue"], 3)
    (group,) = found.groups
    assert [clip.why for clip in group["clips"]] == [
        f"{name} of {UTTS}" for name in ("largest gain", "median", "largest loss")
    ]
    differences = []
    for clip in group["clips"]:
        base, lamer = clip.hypotheses
        assert (base.system, lamer.system) == ("base", "lamer")
        differences.append(lamer.errors - base.errors)
        assert clip.sound.startswith("data:audio/") and clip.seconds == "0.5 s"
    # The three that write_decoded makes.
    assert differences == [-2, 0, 2]


def test_a_hypothesis_shows_what_is_wrong_and_what_is_missing(exp):
    names = [asr_run("cmn", s).name for s in ("base", "lamer")]
    text = exp / names[1] / "decode_cmn" / "free" / "1best_recog" / "text"
    kept = text.read_text()
    lines = kept.splitlines()
    reference = "w0".join(["", *(f"{n} " for n in range(10))]).split()
    lines[0] = " ".join(["cmn_00", "no", *reference[1:5], *reference[6:], "more"])
    text.write_text("\n".join(lines) + "\n")
    try:
        found = listening_examples(exp, names, "lamer", ["cmn"], UTTS)
    finally:
        text.write_text(kept)
    (clip,) = [c for c in found.groups[0]["clips"] if c.utt == "cmn_00"]
    assert clip.hypotheses[1].errors == 3
    assert clip.hypotheses[1].pieces == [
        ("wrong", "no"),
        ("right", " ".join(reference[1:5])),
        ("missing", reference[5]),
        ("right", " ".join(reference[6:])),
        ("wrong", "more"),
    ]


def test_a_language_without_a_recogniser_is_said_to_have_no_clips(exp):
    names = [asr_run("cmn", "base").name, asr_run("cmn", "lamer").name]
    found = listening_examples(exp, names, "lamer", ["cmn", "yue"], 2)
    assert [group["lang"] for group in found.groups] == ["cmn"]
    assert "None of yue: there is no recogniser of it" in found.rule
    assert listening_examples(exp, names, "lamer", ["cmn"], 0).groups == []


def test_missing_audio_leaves_the_text_and_says_so(tmp_path, caplog):
    results = write_run(tmp_path / "exp")
    (tmp_path / "exp" / "speech.wav").unlink()
    page = report_page(tmp_path / "exp", results)
    assert "<audio" not in page and "audio not found" in page
    assert 'class="clip"' in page and "file not found; the report has no" in caplog.text


def test_channel_confounded_data_are_marked_and_identification_is_left_out(tmp_path):
    results = write_run(tmp_path / "exp", confounded=True)
    page = report_page(tmp_path / "exp", results, clips=0)
    assert "channel-confounded: a caveat." in page
    assert "Identification" not in page[: page.index('id="tables"')]


def test_names_are_escaped(exp, tmp_path):
    data = json.loads((exp / "results.json").read_text())
    data["notes"] = ["<script>alert(1)</script>"]
    data["changes"][0]["lang"] = "<b>"
    (tmp_path / "results.json").write_text(json.dumps(data))
    page = report_page(exp, tmp_path / "results.json", clips=0)
    assert "<script>" not in page and "&lt;b&gt;" in page
    check_page(page)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"results.json: file not found; expected what stage 12"),
        ('{"figures": []}', r"results.json: found a file of an earlier version"),
    ],
)
def test_a_folder_without_usable_results_is_refused_and_nothing_is_written(
    tmp_path, content, message
):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(RecipeError, match=message):
        report.main(["--expdir", str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def test_what_stage_8_wrote_is_shown_until_there_are_results(exp, tmp_path):
    alone = tmp_path / "analysis" / "results" / "results.json"
    alone.parent.mkdir(parents=True)
    alone.write_text((exp / "results.json").read_text())
    assert find_results(tmp_path) == alone
    assert find_results(exp) == exp / "results.json"
    assert find_results(tmp_path, exp) == exp / "results.json"
