"""The health check: what it says before the first update; it changes nothing."""

import json
import logging
import re
from collections import Counter

import pytest
import torch

import espnet2_lamer.train.health as module
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.health import Health
from espnet2_lamer.train.trial import Trial


def make_health(parts, is_first=True):
    factories = {"train": parts.train, "valid": parts.valid}
    return Health(parts.model, factories, parts.options, is_first, "cpu")


def read(parts):
    return json.loads((parts.output / "health.json").read_text())


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_labels_memory_time_and_end_are_known_before_the_first_update(
    make_parts, corpus, logged
):
    parts = make_parts(replay_langs=["yue"])
    make_health(parts).start(1, 0)
    found = read(parts)
    lines = [line.split() for line in (corpus / "text.km").read_text().splitlines()]
    counts = Counter(int(unit) for _, *units in lines for unit in units)
    train = found["labels"]["train"]
    assert train["histogram"] == [counts[k] for k in range(5)]
    assert train["frames"] == sum(counts.values()) and train["utterances"] == 24
    frames = {lang: train["languages"][lang]["frames"] for lang in ("cmn", "yue")}
    assert frames["cmn"] == sum(len(line) - 1 for line in lines[::2])
    assert frames["yue"] == sum(len(line) - 1 for line in lines[1::2])
    assert train["majority_accuracy"] == max(counts.values()) / train["frames"]
    memory = found["memory"]
    assert memory["measured"] == "resident memory of the process, its peak so far"
    # More than the interpreter with torch alone, less than a machine has.
    assert 1e8 < memory["peak"] < 1e12
    largest = max(b["speech"].numel() for _, b in parts.train.build_iter(1))
    assert memory["largest_batch_seconds"] == largest / 16000
    assert found["estimate"]["seconds_per_update"] > 0
    text = " ".join(logged.text.split())
    assert "training labels: one unit per frame in 24 utterances" in text
    assert "validation labels: one unit per frame in 24 utterances" in text
    assert f"until {found['estimate']['end']}" in text


def test_nothing_is_left_of_the_check(make_parts):
    parts = make_parts()
    assert parts.model.encoder.lamer.balance == "bias"
    before = {k: v.clone() for k, v in parts.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_health(parts).start(1, 0)
    assert torch.equal(torch.rand(3), expected)
    after = parts.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(p.grad is None for p in parts.model.parameters())
    assert not parts.optimizer.state
    assert sorted(path.name for path in parts.output.iterdir()) == [
        "health.json",
        "train.yaml",
    ]


@pytest.mark.parametrize("accum_grad", [1, 2])
def test_time_follows_from_the_largest_batch_by_its_audio(
    make_parts, monkeypatch, accum_grad
):
    parts = make_parts(accum_grad=accum_grad, max_epoch=7)
    batches = [batch for _, batch in parts.train.build_iter(1)]
    sizes = [batch["speech"].numel() for batch in batches]
    seen = []

    def try_batch(model, batch, device):
        seen.append(batch)
        return Trial(batch["speech"].numel() / 16000, 4.0, 1000)

    monkeypatch.setattr(module, "try_batch", try_batch)
    make_health(parts).start(1, 0)
    (batch,) = seen
    assert batch["speech"].numel() == max(sizes)
    assert any(
        torch.equal(batch["speech"], b["speech"])
        for b in batches
        if b["speech"].shape == batch["speech"].shape
    )
    found = read(parts)
    updates = -(-len(batches) // accum_grad)
    per_update = 4.0 * sum(sizes) / max(sizes) / updates
    assert found["plan"]["updates"] == 7 * updates
    assert found["estimate"]["seconds_per_update"] == pytest.approx(per_update)
    assert found["memory"]["peak"] == 1000
    minutes, seconds = divmod(round(per_update * 7 * updates), 60)
    hours, minutes = divmod(minutes, 60)
    assert found["estimate"]["left"] == f"{hours}:{minutes:02d}:{seconds:02d}"


def test_labels_that_do_not_fit_stop_before_anything_else(make_parts, tmp_path):
    from tests.train.small_training import make_corpus

    broken = tmp_path / "broken"
    make_corpus(broken)
    lines = (broken / "text.km").read_text().splitlines()
    lines[7] = lines[7].rsplit(" ", 1)[0]
    (broken / "text.km").write_text("\n".join(lines) + "\n")
    parts = make_parts(corpus=broken)
    with pytest.raises(RecipeError, match="text.km: utterance utt07: found .* units"):
        make_health(parts).start(1, 0)
    assert not (parts.output / "health.json").exists()


def test_a_batch_that_does_not_fit_into_the_gpu_says_which_options_to_change(
    make_parts, monkeypatch
):
    parts = make_parts()

    def forward(**batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(parts.model, "forward", forward)
    with pytest.raises(
        RecipeError, match="does not fit .*; lower batch_bins and raise"
    ):
        make_health(parts).start(1, 0)
    # What was known before is there.
    assert read(parts)["labels"]["train"]["utterances"] == 24


def test_a_training_that_goes_on_tries_nothing_and_keeps_what_was_measured(
    make_parts, monkeypatch, logged
):
    parts = make_parts()
    make_health(parts).start(1, 0)
    first = read(parts)
    monkeypatch.setattr(module, "try_batch", None)
    logged.clear()
    make_health(parts).start(2, 4)
    found = read(parts)
    assert found["memory"] == first["memory"]
    assert found["estimate"] == first["estimate"]
    assert found["plan"]["epoch"] == 2
    assert "4 made" in logged.text and "  cmn:" not in logged.text
    (parts.output / "health.json").write_text("{")
    make_health(parts).start(2, 4)
    assert read(parts)["labels"] == first["labels"]


def test_each_epoch_says_its_shares_of_languages_and_replay(make_parts, logged):
    parts = make_parts(replay_langs=["yue"])
    health = make_health(parts)
    health.start(1, 0)
    totals = Counter()
    for names, batch in parts.train.build_iter(2):
        for name, length in zip(names, batch["speech_lengths"].tolist(), strict=True):
            totals["yue" if int(name[3:]) % 2 else "cmn"] += length
    share = 100 * totals["yue"] / totals.total()
    logged.clear()
    health.begin_epoch(2)
    (message,) = logged.messages
    assert message.startswith("epoch 2: ")
    assert f"replay (yue) {share:.1f} %, data " in message
    assert f"cmn {totals['cmn'] / 16000 / 60:.2f} min (" in message


def test_baselines_stand_beside_the_losses_in_both_parts(make_parts):
    health = make_health(make_parts())
    health.start(1, 0)
    figures = {"loss_m": 1.6, "loss_m_bits": 2.3, "acc_m": 0.2, "acc_m_cmn": 0.2}
    for part in ("train", "valid"):
        found = health.with_baselines(part, figures)
        assert found["uniform_acc"] == 1 / 5
        assert found["uniform_bits"] == pytest.approx(2.321928)
        assert found["uniform_nats"] == pytest.approx(1.609438)
        assert found["unigram_nats"] <= found["uniform_nats"]
        assert found["majority_acc"] >= found["uniform_acc"]
        names = list(found)
        assert names.index("majority_acc_cmn") == names.index("acc_m_cmn") + 1


def test_the_pace_of_the_first_updates_replaces_the_estimate(make_parts, logged):
    parts = make_parts(max_epoch=3)
    health = make_health(parts)
    health.start(1, 0)
    assert "pace" not in read(parts)
    health.begin_epoch(1)
    for batches in range(1, health.pace.first + 1):
        assert health.eta(1, batches) == ""
        health.updated(1, batches)
    found = read(parts)["pace"]
    assert found["seconds_per_update"] > 0
    assert health.eta(1, batches).startswith(", eta=0:00:")
    assert "s per update" in logged.messages[-1]


def test_other_ranks_write_nothing_but_know_the_same(make_parts, monkeypatch):
    """Ranks share what the first one found; here it is handed over by a double."""
    parts = make_parts()
    first = make_health(parts)
    first.start(1, 0)
    (parts.output / "health.json").unlink()
    sent = [None, first.standards]
    monkeypatch.setattr(module, "is_distributed", lambda: True)
    monkeypatch.setattr(
        module.torch.distributed,
        "broadcast_object_list",
        lambda message: message.__setitem__(slice(None), sent),
    )
    other = make_health(parts, is_first=False)
    other.start(1, 0)
    other.begin_epoch(1)
    other.updated(1, 1)
    assert other.standards == first.standards
    assert not (parts.output / "health.json").exists()
    sent[0] = "text.km: utterance a: no units"
    with pytest.raises(RecipeError, match="utterance a: no units"):
        make_health(parts, is_first=False).start(1, 0)


def waits(health, waited, seconds, count=3):
    for _ in range(count):
        health.waited(waited, seconds)
    health.check_waits()


def test_a_rank_that_waits_for_audio_is_named_with_the_option(make_parts, logged):
    health = make_health(make_parts(num_workers=1))
    health.start(1, 0)
    health.begin_epoch(1)
    # Loaders start with the epoch, which is no sign.
    waits(health, [0.9, 0.9, 0.9], 1.0, count=1)
    waits(health, [0.1, 0.0, 0.19], 1.0)
    assert "slower than training" not in logged.text
    waits(health, [0.1, 0.0, 0.3], 1.0)
    found = "rank 2 waited 30 % of the time .*raise num_workers \\(found 1\\)"
    (message,) = [m for m in logged.messages if "slower than training" in m]
    assert re.search(found, message)
    # Once an epoch.
    waits(health, [0.1, 0.0, 0.3], 1.0)
    health.begin_epoch(2)
    waits(health, [0.5], 1.0, count=5)
    assert logged.text.count("slower than training") == 2


@pytest.mark.parametrize(
    ("ranks", "changes", "said"),
    [
        # Updates of 1 s have two utterances or three.
        (
            8,
            {"update_bins": 16_000},
            ["no utterance left", "less than half", "raise up"],
        ),
        (2, {"update_bins": 80_000}, []),
        (1, {"update_bins": 16_000}, []),
        (6, {"batch_bins": 16_000}, ["batch_bins: batches hold ", "since each of 6"]),
        (2, {"batch_bins": 40_000}, []),
    ],
)
def test_ranks_that_starve_are_said_before_training(
    make_parts, logged, monkeypatch, ranks, changes, said
):
    parts = make_parts(accum_grad=1, **changes)
    parts.train.world_size = ranks
    monkeypatch.setattr(
        module, "try_batch", lambda model, batch, device: Trial(1.0, 1.0, 1000)
    )
    make_health(parts).start(1, 0)
    warnings = [r.getMessage() for r in logged.records if r.levelno == logging.WARNING]
    assert len(warnings) == (2 if "update_bins" in changes else 1) * bool(said)
    for phrase in said:
        assert any(phrase in warning for warning in warnings), phrase
