"""Figures of the routers against plain counting over frames and batches."""

import json
import math

import pytest
import torch

from espnet2_lamer.hubert.espnet_model import index_mask
from espnet2_lamer.hubert.statistics import RoutingLog
from espnet2_lamer.layers import Router, record_routing
from espnet2_lamer.layers.feed_forward import Routing, RoutingRecord


def random_batches(generator, counts, top_k, number=3):
    """Records of some routers, with NaN in the padding; layer i has counts[i]."""
    for _ in range(number):
        frames = int(torch.randint(4, 9, (), generator=generator))
        lengths = torch.randint(2, frames + 1, (3,), generator=generator)
        real = torch.arange(frames) < lengths[:, None]
        mask = (torch.rand(3, frames, generator=generator) < 0.5) & real
        record = RoutingRecord()
        for layer, count in enumerate(counts):
            x = torch.randn(3, frames, 5, generator=generator)
            x = x.masked_fill(~real[..., None], math.nan)
            gates, probs = Router(5, count, top_k)(x)
            record.add(Routing(layer, "ffn", probs, gates))
        yield record, real, mask


def count_plainly(batches, layer, kind):
    """Probability, load and entropy of one layer, frame by frame."""
    probs, used = [], []
    for record, real, mask in batches:
        routing = list(record)[layer]
        wanted = real & (mask if kind == "masked" else ~mask)
        for b, t in wanted.nonzero().tolist():
            probs.append(routing.probs[b, t].tolist())
            used.append([float(g > 0) for g in routing.gates[b, t].tolist()])
    number = len(probs)
    entropy = sum(-p * math.log(p) for row in probs for p in row) / number
    total = sum(map(sum, used))
    return {
        "probability": [sum(column) / number for column in zip(*probs, strict=True)],
        "load": [sum(column) / total for column in zip(*used, strict=True)],
        "entropy": entropy,
    }


@pytest.mark.parametrize("top_k", [1, 2, None])
@pytest.mark.parametrize("seed", range(2))
def test_figures_equal_plain_counts_over_all_batches(tmp_path, top_k, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    counts = [2, 4, 2, 8]
    batches = list(random_batches(generator, counts, top_k))
    path = tmp_path / "exp" / "routing.jsonl"
    statistics = RoutingLog(interval=3, path=path)
    for number, batch in enumerate(batches):
        assert statistics.due is (number == 3)
        statistics.add(*batch)
    assert statistics.due
    summary = statistics.read(torch.tensor(17))
    assert not statistics.due

    line = json.loads(path.read_text())
    assert line["batches"] == 17
    assert line["frames"] == {
        "masked": sum(int((r & m).sum()) for _, r, m in batches),
        "unmasked": sum(int((r & ~m).sum()) for _, r, m in batches),
    }
    assert [row["layer"] for row in line["routers"]] == [0, 1, 2, 3]
    for kind in ("masked", "unmasked"):
        normalised, loads = [], []
        for row, count in zip(line["routers"], counts, strict=True):
            expected = count_plainly(batches, row["layer"], kind)
            for name, value in expected.items():
                assert row[kind][name] == pytest.approx(value, abs=1e-5)
            normalised.append(expected["entropy"] / math.log(count))
            loads += [count * f for f in expected["load"]]
        assert summary[f"routing_entropy_{kind}"] == pytest.approx(
            sum(normalised) / 4, abs=1e-5
        )
        assert summary[f"max_load_{kind}"] == pytest.approx(max(loads), abs=1e-4)
        assert summary[f"min_load_{kind}"] == pytest.approx(min(loads), abs=1e-4)
    assert len(summary) <= 12


def test_an_expert_that_is_hardly_used_is_called_dead(tmp_path):
    gates = torch.zeros(1, 1000, 4)
    gates[..., :2] = 0.5
    gates[0, :5, 2] = 0.1  # 5 of 2005 dispatched: 1 % of the fair share of 501
    record = RoutingRecord()
    record.add(Routing(3, "ffn", torch.full((1, 1000, 4), 0.25), gates))
    real = torch.ones(1, 1000, dtype=torch.bool)
    statistics = RoutingLog(1, tmp_path / "routing.jsonl")
    statistics.add(record, real, real)
    assert statistics.read()["dead_experts"] == 2
    assert json.loads((tmp_path / "routing.jsonl").read_text())["routers"][0][
        "dead"
    ] == [2, 3]


def test_each_reading_starts_from_zero(tmp_path):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    first, second = random_batches(generator, [4], 2, number=2)
    statistics = RoutingLog(1, tmp_path / "a.jsonl")
    statistics.add(*first)
    statistics.read()
    statistics.add(*second)
    fresh = RoutingLog(1, tmp_path / "b.jsonl")
    fresh.add(*second)
    assert statistics.read() == fresh.read()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert lines[1] == (tmp_path / "b.jsonl").read_text().strip()


def test_the_model_reports_them_once_per_interval_in_training(
    build_model, batch, tmp_path
):
    model = build_model()
    model.routing_statistics.interval = 2
    model.routing_statistics.path = tmp_path / "routing.jsonl"
    model.eval()
    assert "dead_experts" not in model(**batch)[1]
    model.train()
    found = ["dead_experts" in model(**batch)[1] for _ in range(5)]
    assert found == [False, True, False, True, False]
    lines = [json.loads(x) for x in (tmp_path / "routing.jsonl").open()]
    assert [line["batches"] for line in lines] == [2, 4]
    assert lines[0]["frames"] == {"masked": 14, "unmasked": 16}
    assert model.state_dict()["training_batches"].item() == 5

    # The same figures from a record taken by hand (nothing was updated meanwhile).
    mask = index_mask(batch["mask_indices"], 9)
    with record_routing(model) as record:
        model.encoder(batch["speech"], batch["speech_lengths"], mask)
    real = torch.arange(9) < torch.tensor([9, 6])[:, None]
    expected = count_plainly([(record, real, mask)], 1, "masked")
    assert lines[0]["routers"][1]["masked"]["probability"] == pytest.approx(
        expected["probability"], abs=1e-5
    )


def test_a_model_without_routers_reports_nothing(build_model, batch):
    model = build_model(lamer={"allocation": "0,1", "rank": 2}).train()
    model.routing_statistics.interval = 1
    assert "dead_experts" not in model(**batch)[1]
