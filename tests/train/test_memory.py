"""The audio of a micro-batch follows from what two trials took, and is kept."""

import json
import logging

import pytest
import torch

import espnet2_lamer.train.health as module
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.health import Health
from espnet2_lamer.train.memory import (
    SHARE,
    Fit,
    device_bins,
    fit_memory,
    read_device_bins,
)
from espnet2_lamer.train.trial import DoesNotFit, Trial
from tests.pretended_gpu import pretended_gpu

FIXED, PER_SECOND = 2_000_000_000, 40_000_000
ROW = 8000  # the longest crop of the small corpus, in samples


class Device:
    """A GPU on which a batch takes FIXED and PER_SECOND bytes per second."""

    def __init__(self, capacity, hidden=0.0):
        self.capacity = capacity
        # What real batches take beside rows of one length, per second.
        self.hidden = hidden
        self.tried = []

    def trial(self, seconds, is_probe=True):
        per_second = PER_SECOND + (0 if is_probe else self.hidden)
        peak = FIXED + per_second * seconds
        self.tried.append((seconds, peak <= self.capacity))
        if peak > self.capacity:
            raise DoesNotFit(f"a batch of {seconds:.1f} s does not fit into its memory")
        return Trial(seconds, 0.1, int(peak))


@pytest.mark.parametrize("gib", [4, 16, 141])
def test_fixed_and_per_second_parts_follow_from_two_sizes(gib):
    device = Device(gib * 2**30)
    later = 300_000_000
    fit = fit_memory(lambda rows: device.trial(15.625 * rows), gib * 2**30, later)
    assert fit.fixed == pytest.approx(FIXED) and fit.per_second == PER_SECOND
    most = (SHARE * gib * 2**30 - later - FIXED) / PER_SECOND
    assert fit.seconds == pytest.approx(most)
    assert device_bins(fit, 250_000) == pytest.approx(16_000 * most, abs=1)
    # It does fit, with all that comes later.
    assert FIXED + later + PER_SECOND * fit.seconds <= SHARE * gib * 2**30 * 1.0001


def test_a_small_gpu_gets_fewer_rows_and_at_least_one():
    def fit(rows):
        device = Device(FIXED + PER_SECOND * 15.625 * rows)
        found = fit_memory(lambda n: device.trial(15.625 * n), device.capacity, 0)
        return found, device_bins(found, 250_000), [fits for _, fits in device.tried]

    found, bins, fits = fit(1.5)
    assert found is None and bins == 250_000 and fits == [True, False, False]
    found, bins, fits = fit(2.5)
    assert found.per_second == PER_SECOND and bins >= 250_000
    assert fits == [True, False, True]
    with pytest.raises(DoesNotFit):
        fit(0.5)
    # The share that is left free may not even hold a row, which has been tried.
    assert device_bins(Fit(FIXED, PER_SECOND, FIXED, 0), 250_000) == 250_000


@pytest.mark.parametrize(
    ("value", "found"), [("auto", None), (900_000, 900_000), ("900000", 900_000)]
)
def test_the_option_is_auto_or_samples(value, found):
    assert read_device_bins(value) == found


@pytest.mark.parametrize("value", ["Auto", "1e6", 0, -5, "0", 1.5, True, "", None])
def test_other_values_of_the_option_are_refused(value):
    with pytest.raises(RecipeError, match="device_bins: found .*, expected auto, or"):
        read_device_bins(value)


@pytest.fixture
def on_gpu(make_parts, monkeypatch, caplog):
    """Start the health check on a pretended GPU of a given memory."""
    caplog.set_level(logging.INFO)

    def start(device, updates=0, **changes):
        parts = make_parts(
            **{"update_bins": 48_000, "accum_grad": 1, "log_interval": 1000} | changes
        )
        probes = []

        def try_batch(model, batch, name):
            assert name == "cuda"
            # Rows of the longest utterance are for measuring.
            lengths = batch["speech_lengths"].tolist()
            is_probe = updates == 0 and set(lengths) == {ROW} and len(probes) < 3
            probes.append(None)
            return device.trial(batch["speech"].numel() / 16_000, is_probe)

        monkeypatch.setattr(module, "try_batch", try_batch)
        memory = device.capacity, 0
        monkeypatch.setattr(module, "cuda_memory", lambda model, ranks: memory)
        factories = {"train": parts.train, "valid": parts.valid}
        with pretended_gpu():
            model = parts.model.to("cuda")
            Health(model, factories, parts.options, True, "cuda").start(1, updates)
        parts.report = json.loads((parts.output / "health.json").read_text())
        return parts

    return start


def largest(parts):
    return max(batch["speech"].numel() for _, batch, _ in parts.train.iterate(1))


def test_auto_takes_what_memory_holds_records_it_and_can_be_repeated(on_gpu, caplog):
    # Room for two rows and a half.
    capacity = int((FIXED + PER_SECOND * 0.5 * 2.5) / SHARE) + 1
    parts = on_gpu(Device(capacity))
    found = parts.report["micro_batch"]
    assert found["by"] == "the GPU's memory"
    assert found["per_second"] == pytest.approx(PER_SECOND)
    assert found["device_bins"] == parts.train.device_bins
    assert parts.train.device_bins == pytest.approx(2.5 * ROW, rel=0.01)
    assert largest(parts) <= parts.train.device_bins
    # 3 s an update, 1.25 s at a time.
    ends = [end for _, _, end in parts.train.iterate(1)]
    assert len(ends) >= 3 * sum(ends)
    assert f"--device_bins {found['device_bins']} does the same again" in caplog.text
    plan = [names for names, _, _ in parts.train.iterate(1)]
    again = on_gpu(Device(capacity), device_bins=found["device_bins"])
    assert [names for names, _, _ in again.train.iterate(1)] == plan
    assert again.report["micro_batch"]["by"] == "device_bins"


def test_what_does_not_fit_after_all_is_halved_and_said(on_gpu, caplog):
    # The measurement promises far more than there is.
    device = Device(int((FIXED + PER_SECOND * 3.2) / SHARE), hidden=8 * PER_SECOND)
    parts = on_gpu(device)
    failed = [seconds for seconds, fits in device.tried[2:] if not fits]
    assert failed and device.tried[-1][1]
    assert parts.train.device_bins == int(failed[-1] * 16_000) // 2
    assert parts.report["micro_batch"]["device_bins"] == parts.train.device_bins
    assert caplog.text.count("did not fit into the GPU's memory after all") == len(
        failed
    )
    assert largest(parts) <= max(parts.train.device_bins, ROW)


def test_a_number_is_obeyed_or_refused_and_one_utterance_has_to_fit(on_gpu):
    small = FIXED + PER_SECOND * 0.7
    with pytest.raises(RecipeError, match="does not fit into its memory; lower device"):
        on_gpu(Device(small), device_bins=100_000)
    parts = on_gpu(Device(small))
    assert parts.train.device_bins == ROW
    with pytest.raises(RecipeError, match="does not fit .* no shorter crop"):
        on_gpu(Device(FIXED))


def test_a_device_that_tells_nothing_gets_the_configured_batch(on_gpu, monkeypatch):
    device = Device(10**12)
    flat = Trial(1.0, 0.1, 0)
    device.trial = lambda seconds, is_probe: Trial(seconds, flat.seconds, flat.peak)
    parts = on_gpu(device)
    assert parts.train.device_bins == 24_000
    assert "no more memory" in parts.report["micro_batch"]["by"]


def test_on_a_cpu_auto_is_the_configured_batch(make_parts):
    parts = make_parts(update_bins=48_000, accum_grad=1)
    factories = {"train": parts.train, "valid": parts.valid}
    Health(parts.model, factories, parts.options, True, "cpu").start(1, 0)
    found = json.loads((parts.output / "health.json").read_text())
    assert found["micro_batch"] == {"device_bins": 24_000, "by": "batch_bins"}
    assert parts.train.device_bins == 24_000 and largest(parts) <= 24_000


def test_ranks_take_the_least_of_what_they_found(make_parts, monkeypatch):
    parts = make_parts(update_bins=48_000, accum_grad=1)
    factories = {"train": parts.train, "valid": parts.valid}

    def gather(value):
        problem, bins = value if isinstance(value, tuple) else (value, None)
        return [value, (problem, bins and bins // 2) if bins else problem]

    monkeypatch.setattr(module, "gather", gather)
    Health(parts.model, factories, parts.options, True, "cpu").start(1, 0)
    assert parts.train.device_bins == 12_000


def test_what_was_chosen_is_kept_in_checkpoints_and_on_resume(make_parts, monkeypatch):
    from espnet2.train.distributed_utils import DistributedOption

    from espnet2_lamer.train.run import TrainingRun

    def training(**changes):
        parts = make_parts(
            **{"update_bins": 48_000, "accum_grad": 1, "max_epoch": 1} | changes
        )
        return TrainingRun(
            parts.model,
            parts.optimizer,
            None,
            parts.train,
            parts.valid,
            parts.options,
            DistributedOption(),
        )

    run = training()
    run.train_factory.device_bins = 17_000
    run.updates = 1
    run.store.save(run.state(None), 1)
    again = training()
    again._resume()
    assert again.train_factory.device_bins == 17_000
    # Asked for by number, it is another condition.
    with pytest.raises(RecipeError, match='device_bins: "auto" -> 30000'):
        training(device_bins=30_000)._resume()
    other = training(device_bins=30_000, allow_changed=True)
    other._resume()
    assert other.train_factory.device_bins == 30_000


def test_checkpoints_of_trainings_without_it_know_nothing_of_it(make_parts):
    parts = make_parts()
    found = parts.options.fingerprint
    assert not {"update_bins", "device_bins"} & found.keys()
    assert {"update_bins", "device_bins"} <= make_parts(
        update_bins=48_000, accum_grad=1
    ).options.fingerprint.keys()


def test_a_trial_out_of_memory_leaves_the_others_ranks_alone(make_parts, monkeypatch):
    """It exchanges nothing: a rank that fails leaves none waiting."""
    import espnet2_lamer.hubert.statistics as statistics
    from espnet2_lamer.train.trial import try_batch

    parts = make_parts()
    _, batch = next(iter(parts.train.build_iter(1)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", None)
    assert statistics.is_distributed()
    try_batch(parts.model, batch, "cpu")
    assert statistics.is_distributed()

    def forward(**batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(parts.model, "forward", forward)
    with pytest.raises(DoesNotFit, match="does not fit"):
        try_batch(parts.model, batch, "cpu")
    assert statistics.is_distributed()
