"""Routing statistics equal their formulas; heat-maps show them."""

import json
import math

import numpy as np
import pytest
import torch

from espnet2_lamer.analysis.plots import plot_languages, plot_layers
from espnet2_lamer.analysis.routing import (
    RoutingStatistics,
    mutual_information,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers.feed_forward import Routing, RoutingRecord
from espnet2_lamer.metrics.similarity import entropy


def top2(probs):
    values, chosen = probs.topk(2)
    gates = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, chosen, gates)


def random_probs(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).softmax(-1)


def recorded(probs, gates, router="ffn"):
    """A record of one utterance, from its frames ``[T, N]`` per layer."""
    record = RoutingRecord()
    for layer in probs:
        record.add(Routing(layer, router, probs[layer][None], gates[layer][None]))
    return record


def test_table_holds_means_and_shares_over_all_frames_of_a_language():
    probs = {lang: random_probs(i, 30, 4) for i, lang in enumerate(["eng", "yue"])}
    statistics = RoutingStatistics()
    for start, stop in [(0, 10), (10, 30)]:
        for lang, p in probs.items():
            part = p[start:stop]
            record = recorded({2: part}, {2: top2(part)})
            statistics.add(lang, record, len(part))
    rows = statistics.table()
    assert [(r["layer"], r["lang"], r["frames"], r["experts"]) for r in rows] == [
        (3, "eng", 30, 4),
        (3, "yue", 30, 4),
    ]
    for row in rows:
        p = probs[row["lang"]]
        share = (top2(p) > 0).float().sum(0) / 60
        torch.testing.assert_close(torch.tensor(row["mean_prob"]), p.mean(0))
        torch.testing.assert_close(torch.tensor(row["mean_gate"]), top2(p).mean(0))
        torch.testing.assert_close(torch.tensor(row["dispatch_share"]), share)


def test_only_real_frames_of_every_router_count():
    probs = random_probs(0, 9, 3)
    padded = torch.cat([probs, torch.full((2, 3), math.nan)])
    statistics, expected = RoutingStatistics(), RoutingStatistics()
    for router in ("ffn", "output_dense"):
        record = recorded({0: padded}, {0: top2(padded)}, router)
        statistics.add("yue", record, 9)
        expected.add("yue", recorded({0: probs}, {0: top2(probs)}, router), 9)
    assert [row["router"] for row in statistics.table()] == ["ffn", "output_dense"]
    assert statistics.table() == expected.table()
    assert statistics.layers() == expected.layers()


def test_an_utterance_without_frames_changes_nothing():
    statistics = RoutingStatistics()
    statistics.add("eng", recorded({0: torch.zeros(0, 3)}, {0: torch.zeros(0, 3)}), 0)
    assert statistics.table() == []


def test_mutual_information_equals_its_definition():
    counts = np.array([[5, 0, 7], [2, 9, 1]])
    n = counts.sum()
    expected = sum(
        counts[i, k]
        / n
        * math.log(n * counts[i, k] / (counts[i].sum() * counts[:, k].sum()))
        for i in range(2)
        for k in range(3)
        if counts[i, k]
    )
    assert mutual_information(counts) == pytest.approx(expected, rel=1e-12)


def test_mutual_information_is_0_for_shared_and_ln_l_for_private_experts():
    assert mutual_information(np.full((3, 4), 10)) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.eye(3) * 10) == pytest.approx(math.log(3))


def test_entropy_is_ln_n_when_balanced_and_0_for_one_expert():
    assert entropy(np.array([5, 5, 5, 5])) == pytest.approx(math.log(4))
    assert entropy(np.array([7, 0])) == 0


def test_layers_report_experts_of_each_language_and_dead_ones():
    statistics = RoutingStatistics()
    for k, lang in enumerate(["cmn", "eng"]):
        probs = torch.full((8, 4), 0.1)
        probs[:, k] = 0.7
        gates = torch.zeros(8, 4)
        gates[:, k], gates[:, 2] = 0.875, 0.125
        statistics.add(lang, recorded({5: probs}, {5: gates}), 8)
    (row,) = statistics.layers()
    assert (row["layer"], row["frames"], row["dead_experts"]) == (6, 16, [4])
    assert row["mutual_information"] == pytest.approx(math.log(2))
    assert row["language_entropy"] == pytest.approx(math.log(2))
    # Shares 1/4, 1/4, 1/2.
    assert row["load_entropy"] == pytest.approx(1.5 * math.log(2))
    assert row["load"] == pytest.approx([1, 1, 2, 0])
    expected = -0.7 * math.log(0.7) - 0.3 * math.log(0.1)
    assert row["routing_entropy"] == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def statistics():
    result = RoutingStatistics()
    for seed, lang in enumerate(["cmn", "eng", "yue"]):
        probs = {0: random_probs(seed, 20, 2), 2: random_probs(seed + 9, 20, 4)}
        record = recorded(probs, {k: top2(p) for k, p in probs.items()})
        result.add(lang, record, 20)
    return result


def test_saved_json_holds_table_and_layers(statistics, tmp_path):
    statistics.save(tmp_path / "routing.json")
    saved = json.loads((tmp_path / "routing.json").read_text())
    assert saved == {"table": statistics.table(), "layers": statistics.layers()}


@pytest.mark.parametrize("plot", [plot_layers, plot_languages])
def test_heatmap_is_a_png_and_the_same_bytes_each_time(statistics, tmp_path, plot):
    for name in ("one.png", "two.png"):
        plot(statistics.table(), tmp_path / name)
    one = (tmp_path / "one.png").read_bytes()
    assert one[:8] == b"\x89PNG\r\n\x1a\n"
    assert one == (tmp_path / "two.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_heatmap_panels_show_the_gates_and_leave_absent_experts_blank(
    statistics, tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    with pytest.raises(FileNotFoundError):  # nothing was written to be renamed
        plot_layers(statistics.table(), tmp_path / "map.png")
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["cmn", "eng", "yue"]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["1", "3"]
    rows = {(r["layer"], r["lang"]): r["mean_gate"] for r in statistics.table()}
    for axes in panels:
        shown = np.ma.filled(axes.images[0].get_array(), np.nan)
        expected = [
            [*rows[1, axes.get_title()], math.nan, math.nan],
            rows[3, axes.get_title()],
        ]
        np.testing.assert_array_equal(shown, expected)


def test_a_model_without_routers_has_no_heatmap(tmp_path):
    for plot in (plot_layers, plot_languages):
        with pytest.raises(RecipeError, match="has a router"):
            plot(RoutingStatistics().table(), tmp_path / "map.png")
    assert not list(tmp_path.iterdir())
