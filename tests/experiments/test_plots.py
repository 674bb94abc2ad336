"""The picture shows the tables' differences, and which of them are told."""

import pytest

from espnet2_lamer.experiments import plots
from espnet2_lamer.experiments.plots import plot_differences
from espnet2_lamer.experiments.tables import Tables


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were written."""
    pictures, save = [], plots.save_picture

    def keep(picture, *args, **kwargs):
        pictures.append(picture)
        save(picture, *args, **kwargs)

    monkeypatch.setattr(plots, "save_picture", keep)
    return pictures


def test_a_point_and_its_interval_are_those_of_the_tables(small, drawn, tmp_path):
    small.matrix().run()
    tables = Tables.of_cells(small.matrix(), {})
    assert plot_differences(tables, tmp_path / "small.png")
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")
    # CKA has no better direction and is not drawn.
    (axes,) = drawn[0].axes
    assert axes.get_title() == "ASR error eng"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["good", "bad"]
    _, interval, point = axes.lines
    found = tables.figure("ASR error eng", "bad").differences["good"]
    assert interval.get_xdata() == pytest.approx(found.interval)
    assert [*point.get_xdata(), *point.get_ydata()] == [pytest.approx(found.value), 1]
    assert point.get_markerfacecolor() == point.get_color() == plots._WORSE


@pytest.mark.parametrize(
    ("interval", "better", "colour"),
    [
        ((1.0, 2.0), "higher", plots._BETTER),
        ((-2.0, -1.0), "lower", plots._BETTER),
        ((-2.0, -1.0), "higher", plots._WORSE),
        ((1.0, 2.0), "lower", plots._WORSE),
        ((-1.0, 2.0), "lower", plots._UNTOLD),
    ],
)
def test_colour_tells_the_direction_and_a_hollow_point_that_none_is_told(
    interval, better, colour
):
    from matplotlib.figure import Figure

    from espnet2_lamer.experiments import figures
    from espnet2_lamer.experiments.measures import Name
    from espnet2_lamer.metrics.bootstrap import Difference
    from espnet2_lamer.metrics.measure import Measure

    difference = Difference(0.5, interval, 0.5, seeds=(0, 1))
    name = Name({"higher": "phone probe", "lower": "ASR error"}[better], "eng")
    figure = figures.Figure(name, "bad", (0, 1), Measure(0.5), {"good": difference})
    axes = Figure().subplots()
    plots._panel(axes, [figure], ["good", "bad"], "good")
    point = axes.lines[-1]
    assert point.get_color() == colour
    hollow = point.get_markerfacecolor() == "white"
    assert hollow == (colour == plots._UNTOLD)


def test_nothing_is_drawn_before_there_is_a_difference(small, tmp_path):
    small.matrix().run("good/*")
    assert not plot_differences(
        Tables.of_cells(small.matrix(), {}), tmp_path / "small.png"
    )
    assert not list(tmp_path.glob("*.png"))
