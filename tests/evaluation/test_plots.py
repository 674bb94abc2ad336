"""Pictures are written, hold what they are given, and do not change by themselves."""

import pytest

from espnet2_lamer.evaluation.plots import plot_confusion, plot_rates, write_plots
from espnet2_lamer.evaluation.results import (
    Results,
    Task,
    TaskFigure,
    collect_figures,
)
from espnet2_lamer.evaluation.scoring import LidScore, Score
from espnet2_lamer.metrics.measure import Measure


def figure(system, test, value, interval, track="asr"):
    task = Task(track, test, "char", "all speech")
    measure = Measure(value, interval, 9)
    score = Score({}, {})
    return TaskFigure("T", test, "char", system, measure, task=task, score=score)


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were written."""
    from matplotlib.figure import Figure as Picture

    pictures, save = [], Picture.savefig

    def keep(self, *args, **kwargs):
        pictures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Picture, "savefig", keep)
    return pictures


def test_every_system_has_a_point_and_its_interval_at_every_test_set(tmp_path, drawn):
    figures = [
        figure("base", "eng", 40.0, (35.0, 46.0)),
        figure("base", "cmn", 60.0, (55.0, 65.0)),
        figure("lamer", "eng", 30.0, (25.0, 36.0)),
    ]
    plot_rates(figures, tmp_path / "rates.png")
    (axes,) = drawn[0].axes
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert [label.split()[0] for label in labels] == ["eng", "cmn"]
    assert all("char" in label for label in labels)
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["base", "lamer"]
    segments = [
        segment[:, 1].tolist()
        for container in axes.containers
        for segment in container.lines[2][0].get_segments()
    ]
    assert segments == [[35.0, 46.0], [55.0, 65.0], [25.0, 36.0]]


def test_a_confusion_picture_has_a_panel_per_system_and_the_counts(tmp_path, drawn):
    confusions = {
        "base": {"eng": {"eng": 7, "UNK": 3}, "cmn": {"eng": 10}},
        "lamer": {"eng": {"eng": 10}, "cmn": {"cmn": 9, "eng": 1}},
    }
    plot_confusion(confusions, tmp_path / "confusion.png")
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["base", "lamer"]
    found = [text.get_text() for text in panels[0].get_xticklabels()]
    assert found == ["cmn", "eng", "UNK"]
    # Rows cmn, eng; columns cmn, eng, UNK.
    numbers = [text.get_text() for text in panels[0].texts]
    assert numbers == ["0", "10", "0", "0", "7", "3"]


def test_the_pictures_of_a_run_have_one_name_per_track_and_lid_test(tmp_path):
    found = {"a": "eng", "b": "cmn"}
    lid = LidScore({"a": "eng", "b": "eng"}, found)
    task = Task("lid", "all", "first tag", "1h total")
    part = Task("lid", "all", "first tag", "1h total", "eng")
    results = Results(
        {"base": "B"}, identification={t: {"base": {0: lid}} for t in (task, part)}
    )
    paths = write_plots(tmp_path, results, collect_figures(results))
    assert [path.name for path in paths] == [
        "accuracy_lid.png",
        "confusion_lid_all_first_tag_1h_total.png",
    ]
    first = [path.read_bytes() for path in paths]
    assert all(data.startswith(b"\x89PNG") for data in first)
    write_plots(tmp_path, results, collect_figures(results))
    assert [path.read_bytes() for path in paths] == first
