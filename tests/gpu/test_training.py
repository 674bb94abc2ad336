"""Pretraining on a GPU: what runs where, and a training that was killed."""

import copy
import json
import logging
import signal

import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.train.batching import LamerCollate
from tests.pretended_gpu import pretended_gpu
from tests.train.small_training import CONFIG, command, differences, outcome

SHORT = {
    "max_epoch": 1,
    "monitor_utts": 1,
    "checkpoint_interval": 1,
    # A few short batches.
    "batch_bins": 8000,
    "collate_fn_conf": {"max_sample_size": 4000},
}
ENCODER = CONFIG["encoder_conf"]
# Where the host waits for the device, and why: for no batch, for no update.
BEFORE = {"layers.norms.frozen_norms"}
BY_INTERVAL = {
    # Figures of all batches since the last time, in one transfer.
    "train.figures.Figures.flush",
    "hubert.statistics.LanguageStatistics.read",
    "hubert.statistics.RoutingLog.read",
}
BY_CHECKPOINT = {"train.run.TrainingRun._rank_state"}
BY_EPOCH = {"train.monitor.ForgettingMonitor._states"}


class Killed(BaseException):
    """Ends a training in the middle of an update."""


def train(corpus, output, *more, **changes):
    options = command(corpus, output, **(SHORT | changes))
    LamerHubertTask.main(cmd=[*options, "--ngpu", "1", *more])


def kill_at_batch(patch, number):
    real, seen = LamerCollate.__call__, []

    def collate(self, batch):
        # The first is that of the trial.
        seen.extend([None] * self.train)
        if len(seen) > number:
            raise Killed
        return real(self, batch)

    patch.setattr(LamerCollate, "__call__", collate)


def distance(one, two):
    """The largest difference of any weight."""
    return max(
        (value.double() - two["model"][name]).abs().max().item()
        for name, value in one["model"].items()
        if value.numel()
    )


def test_the_host_waits_in_these_places_only(corpus, tmp_path):
    with pretended_gpu() as gpu:
        train(corpus, tmp_path / "exp", log_interval=3)
    assert gpu.reads.keys() == BEFORE | BY_INTERVAL | BY_CHECKPOINT | BY_EPOCH
    updates = json.loads((tmp_path / "exp/health.json").read_text())["plan"]["updates"]
    found = outcome(tmp_path / "exp")
    assert found["updates"] == updates
    assert {value.device.type for value in found["model"].values()} == {"cpu"}


def test_a_killed_training_goes_on_to_the_same_weights(
    gpu, corpus, tmp_path, monkeypatch
):
    with gpu() as pretended:
        train(corpus, tmp_path / "whole")
        with pytest.MonkeyPatch.context() as patch:
            # In the middle of the second update.
            kill_at_batch(patch, 4)
            with pytest.raises(Killed):
                train(corpus, tmp_path / "killed")
        states = [*(tmp_path / "killed/checkpoints").glob("*.pth")]
        assert [path.name for path in states] == ["update_00000001.pth"]
        train(corpus, tmp_path / "killed")
        if not pretended:
            train(corpus, tmp_path / "again")
    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert killed["updates"] == whole["updates"]
    assert killed["figures"].keys() == whole["figures"].keys()
    if pretended:
        assert differences(whole, killed) == []
    else:
        # As two undisturbed trainings agree.
        usual = distance(whole, outcome(tmp_path / "again"))
        assert distance(whole, killed) <= max(1e-4, 10 * usual)


def test_with_a_feature_cache_it_goes_on_to_the_weights_without_one(
    gpu, corpus, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    changes = {"collate_fn_conf": {"max_sample_size": 8000, "bucket_samples": 1600}}
    with gpu():
        train(corpus, tmp_path / "without", **changes)
        changes |= {"feature_cache_gb": 1.0}
        with pytest.MonkeyPatch.context() as patch:
            # In the middle of an update; each part was compared with the network.
            kill_at_batch(patch, 5)
            with pytest.raises(Killed):
                train(corpus, tmp_path / "with", **changes)
        train(corpus, tmp_path / "with", **changes)
    assert "% from the feature cache" in caplog.text
    assert "resumed after update" in caplog.text
    without, found = outcome(tmp_path / "without"), outcome(tmp_path / "with")
    assert found["updates"] == without["updates"]
    # As two undisturbed trainings agree: a batch may be summed in another order.
    assert distance(without, found) <= 1e-4


@pytest.mark.parametrize(("first", "second"), [("0", "1"), ("1", "0")])
@pytest.mark.slow
def test_a_training_may_move_between_cpu_and_gpu(
    gpu, corpus, tmp_path, caplog, first, second
):
    with gpu():
        with pytest.MonkeyPatch.context() as patch:
            kill_at_batch(patch, 4)
            with pytest.raises(Killed):
                train(corpus, tmp_path, "--ngpu", first)
        train(corpus, tmp_path, "--ngpu", second)
    assert outcome(tmp_path)["updates"] > 1
    assert "dropout draws other random numbers" in caplog.text


def test_an_update_is_split_by_the_memory_of_the_device(gpu, corpus, tmp_path):
    with gpu() as pretended:
        train(corpus, tmp_path, update_bins=16_000, accum_grad=1)
    report = json.loads((tmp_path / "health.json").read_text())
    found, plan = report["micro_batch"], report["plan"]["batches"]
    assert plan["largest"] * 16_000 <= found["device_bins"]
    if pretended:
        # It does not tell what a batch takes.
        assert found["by"].startswith("batch_bins (larger batches")
    else:
        assert found["by"] == "the GPU's memory" and found["per_second"] > 0
        # Nothing of this size is more than it holds.
        assert plan["micro_batches"] == plan["batches"]
    assert outcome(tmp_path)["updates"] == report["plan"]["updates"]


KINDS = {
    # A loss scale, which only a GPU has.
    "fp16": {"amp_dtype": "fp16"},
    "bf16": {"amp_dtype": "bf16"},
    "everything trains": {
        "encoder_conf": {k: v for k, v in ENCODER.items() if k != "lamer"},
    },
    "checkpointing": {"encoder_conf": ENCODER | {"gradient_checkpointing": True}},
    "all terms": {
        "encoder_conf": ENCODER | {"encoder_layer_drop": 0.3},
        "model_conf": {"unmasked_weight": 0.5, "distill_weight": 0.5},
        "replay_langs": ["cmn"],
        "grad_norm_groups": True,
    },
    "other routing": {
        "encoder_conf": ENCODER
        | {
            "lamer": {
                "allocation": "4,4",
                "rank": 2,
                "router": "projection",
                "balance": "importance",
                "top_k": None,
                "targets": ["intermediate_dense", "output_dense", "ffn"],
            }
        }
    },
}


@pytest.mark.parametrize(
    "kind",
    ["fp16", *(pytest.param(k, marks=pytest.mark.slow) for k in [*KINDS][1:])],
)
def test_other_trainings_run_there(gpu, corpus, tmp_path, kind):
    with gpu():
        train(corpus, tmp_path, **KINDS[kind])
    found = outcome(tmp_path)
    assert all(value.isfinite().all() for value in found["model"].values())


@pytest.mark.slow
def test_expansion_and_the_check_of_one_batch_run_there(gpu, corpus, tmp_path):
    more = ENCODER | {"lamer": ENCODER["lamer"] | {"allocation": "4,6"}}
    with gpu():
        train(corpus, tmp_path / "exp")
        options = ["--expand_from", str(tmp_path / "exp")]
        train(corpus, tmp_path / "more", *options, encoder_conf=more)
        options = ["--sanity", "true", "--sanity_updates", "2"]
        options += ["--init_param", str(tmp_path / "exp/1epoch.pth")]
        with pytest.raises(RecipeError, match="sanity: one batch could not be learnt"):
            train(corpus, tmp_path / "sanity", *options)
    assert (tmp_path / "sanity/sanity.json").is_file()


def test_ranks_exchange_tensors_of_the_device_only(corpus, tmp_path):
    """NCCL knows no others; here nothing is exchanged, but every message is seen."""
    from espnet2.torch_utils.device_funcs import to_device
    from espnet2.train.distributed_utils import DistributedOption
    from espnet2.train.reporter import Reporter
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from espnet2_lamer.train.console import StopRequest
    from espnet2_lamer.train.exchange import say, stop_signal, waits
    from espnet2_lamer.train.figures import Figures
    from espnet2_lamer.train.run import TrainingRun
    from espnet2_lamer.train.update import Updater

    options = command(corpus, tmp_path, **SHORT, log_interval=2)
    args = LamerHubertTask.get_parser().parse_args([*options, "--ngpu", "1"])
    args.distributed = False
    factory = LamerHubertTask.build_iter_factory(args, DistributedOption(), "train")
    batch = factory.load(factory.plan(1)[0], 1)
    with pretended_gpu() as gpu:
        model = LamerHubertTask.build_model(args).to("cuda").train()
        (optimizer,) = LamerHubertTask.build_optimizers(args, model)
        # Before there are ranks: this would compare objects, which NCCL takes.
        trainer_options = LamerHubertTask.trainer.build_options(args)
        torch.distributed.init_process_group(
            "fake", store=FakeStore(), rank=0, world_size=2
        )
        gpu.messages = 0
        try:
            parts = (model, optimizer, None, factory, factory, trainer_options)
            run = TrainingRun(*parts, DistributedOption())
            updater = Updater(model, optimizer, None, None, args)
            request = StopRequest()
            request.signal = signal.SIGTERM
            with Reporter().observe("train", 1) as reporter:
                figures = Figures(reporter)
                updater.add(batch[0], to_device(batch[1], "cuda"), figures, False)
                figures.next()
                state = copy.deepcopy(run._rank_state())
                updater.add(batch[0], to_device(batch[1], "cuda"), figures, True)
                updater.step(figures, say(request, 1.5))
                # One of each batch, of the model; one of the update. And of this
                # interval of two batches that of the routing.
                assert gpu.messages == 2 + 1 + 1
                figures.next()
                updater.settle()
                figures.flush()
                reporter.register(model.language_statistics.read())
            assert gpu.messages == 5
            # The device waits for nobody: what was said is known one update later.
            assert updater.on_device
            assert stop_signal(request, updater.said) == signal.SIGTERM
            assert list(waits(updater.said, 0.0)) == [1.5, 0.0]
        finally:
            torch.distributed.destroy_process_group()
    # Another rank, of another GPU, writes what each has of its own.
    own = [*state["routing"]["sums"], state["languages"]["sums"]]
    assert {value.device.type for value in own} == {"cpu"}
