"""The host does not wait for the device between two log lines; figures are the same."""

import copy
import logging
import math
from collections import Counter

import pytest
import torch
from espnet2.train.reporter import Reporter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.figures import Figures
from espnet2_lamer.train.update import (
    PolynomialDecayLR,
    Updater,
    fused_option,
    load_optimizer,
)
from tests.train.test_update import Toy, batches, options

READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2")
HOST = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class Reads(TorchFunctionMode):
    """Counts everything that would make a host wait for a device, by its name."""

    def __init__(self):
        super().__init__()
        self.found = Counter()
        outer = self

        class Dispatch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                name = func.overloadpacket.__name__
                places = args[1] if name == "index" else []
                masks = [getattr(place, "dtype", None) for place in places]
                if name in READS or torch.bool in masks:
                    outer.found[name] += 1
                return func(*args, **(kwargs or {}))

        self.dispatch = Dispatch()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in HOST:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self.dispatch.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.dispatch.__exit__(*error)


class Training:
    """A toy with AdamW, fused as on a GPU or not, and a schedule."""

    def __init__(self, fused, **changes):
        self.model = Toy()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.1, fused=fused)
        self.scheduler = PolynomialDecayLR(self.optimizer, 3, 20)
        self.updater = Updater(
            self.model, self.optimizer, self.scheduler, None, options(**changes)
        )
        self.reporter = Reporter().start_epoch("train", 1)
        self.figures = Figures(self.reporter)

    def update(self, parts, names=("utt1",)):
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            self.updater.add(list(names), part, self.figures, last)
            if last:
                self.updater.step(self.figures)
            self.figures.next()

    def read(self):
        self.updater.settle()
        self.figures.flush()
        return {
            key: [getattr(row, "value", row) for row in rows]
            for key, rows in self.reporter.stats.items()
            if "time" not in key
        }


def poisoned(seed=0):
    parts = batches(4, 3, seed=seed)
    parts[0]["x"][0, 0] = math.nan
    return parts


def test_nothing_is_read_between_log_lines():
    training = Training(fused=True)
    assert training.updater.on_device
    found = []
    for seed in range(4):
        with Reads() as reads:
            training.update(batches(4, 1, 7, seed=seed))
        found.append(dict(reads.found))
    # What the host does read is the update before, which is over by then.
    late = {"tolist": 1}
    assert found == [{}, late, late, late]
    with Reads() as reads:
        training.read()
    assert reads.found["cpu"] == 1
    # The counter does count.
    with Reads() as reads:
        torch.ones(2).sum().item()
        bool(torch.ones(1))
        torch.ones(3)[torch.tensor([True, False, True])]
        torch.ones(2).tolist()
    assert reads.found["tolist"] == 1 and reads.found["_local_scalar_dense"] >= 2
    assert reads.found["index"] == 1


PATTERNS = [
    [True] * 4,
    [False, True, True],
    [True, False, False, True, True],
    [True, True, False],
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_update_that_the_device_skips_leaves_weights_moments_and_schedule(pattern):
    """The host decides at once in the one, and never in the other."""
    ours, plain = Training(fused=True), Training(fused=False)
    assert not plain.updater.on_device
    # Torch's fused kernel on those updates alone that are good.
    alone = Training(fused=True)
    for seed, good in enumerate(pattern):
        parts = batches(4, 3, seed=seed) if good else poisoned(seed)
        for training in (ours, plain, *([alone] if good else [])):
            training.update(parts)
    found, expected = ours.read(), plain.read()
    alone.read()
    for one, other in zip(
        ours.model.parameters(), alone.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)
    state, others = ours.optimizer.state_dict(), alone.optimizer.state_dict()
    for key, values in state["state"].items():
        for name, value in values.items():
            assert torch.equal(value, others["state"][key][name]), name
        assert values["step"] == sum(pattern)
    assert ours.scheduler.state_dict() == alone.scheduler.state_dict()
    # And rates and figures are those of a host that looks at each update at once.
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-5, nan_ok=True), key
    assert found["optim0_lr0"] == expected["optim0_lr0"]
    assert found["bad_update"][1::2] == [0.0 if good else 100.0 for good in pattern]


def test_a_bad_update_is_named_one_update_later_and_a_row_of_them_ends_training(caplog):
    caplog.set_level(logging.WARNING)
    training = Training(fused=True, max_bad_updates=3)
    training.update(poisoned(), names=("bad-1",))
    assert caplog.text == ""
    training.update(batches(4), names=("good-1",))
    (message,) = caplog.messages
    assert "bad-1" in message and "2 tensors" in message and "lora_A" in message
    for number in (2, 3, 4):
        training.update(poisoned(number), names=(f"bad-{number}",))
    before = copy.deepcopy(training.model.state_dict())
    with pytest.raises(RecipeError, match=r"3 updates in a row .*bad-4"):
        training.update(batches(4, seed=9))
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_tensors_whose_gradient_was_not_finite_are_named():
    class Half(Toy):
        def forward(self, x, y):
            found = super().forward(x, y)
            # The gradient of a square root at 0 is infinite.
            return found[0] + (self.lora_B * 0).abs().sum().sqrt(), *found[1:]

    training = Training(fused=False)
    training.model.__class__ = Half
    training.updater.options.max_bad_updates = 1
    with pytest.raises(RecipeError, match=r"1 tensors are not finite, e.g. \['lora_B'"):
        training.update(batches(4))


def test_queued_figures_reach_the_reporter_as_if_registered_at_once():
    plain = Reporter().start_epoch("train", 1)
    queued = Reporter().start_epoch("train", 1)
    logged, expected = [], []

    def log(reporter):
        logged.append(reporter.log_message(-1))

    figures = Figures(queued, log)
    generator = torch.Generator().manual_seed(0)
    for step in range(7):
        loss, weight = torch.rand(2, generator=generator)
        plain.register({"iter_time": float(step)})
        plain.register({"loss": loss.item()}, weight.item())
        figures.took(iter_time=float(step))
        figures.slot("loss").fill(
            lambda v: ({"loss": v[0].item()}, v[1].item()), torch.stack([loss, weight])
        )
        if step % 3 == 1:
            plain.register({"rare": step})
            figures.register({"rare": step})
        assert figures.count == plain.count
        plain.next()
        figures.next()
        expected.append(plain.log_message(-1))
        if step in (2, 3):
            figures.flush()
    assert queued.count == 4
    figures.flush()
    assert list(queued.stats) == list(plain.stats)
    # As text: NaN is where a step has no such figure.
    assert str(queued.stats) == str(plain.stats)
    assert logged == expected


def test_a_step_of_several_batches_is_their_mean_by_weight():
    parts = batches(4, 1, 7)
    together, apart = Training(fused=True), Training(fused=True)
    apart.update(parts)
    for number, part in enumerate(parts, 1):
        together.updater.add(["utt"], part, together.figures, number == 3)
    together.updater.step(together.figures)
    together.figures.next()
    rows = (apart.read(), apart.reporter.stats["loss"])[1]
    together.read()
    (row,) = together.reporter.stats["loss"]
    assert row.weight == 12
    mean = sum(r.value * r.weight for r in rows) / 12
    assert row.value == pytest.approx(mean, rel=1e-6)


def test_fused_is_for_gpus_and_for_who_did_not_choose():
    class OnGpu(torch.Tensor):
        is_cuda = True

    gpu, cpu = [OnGpu()], [torch.ones(1)]
    assert fused_option("adamw", {"lr": 1}, gpu) == {"fused": True}
    assert fused_option("adamw", {"lr": 1}, cpu) == {}
    assert fused_option("adamw", {"lr": 1}, gpu + cpu) == {}
    assert fused_option("adamw", {"fused": False}, gpu) == {}
    assert fused_option("adamw", {"foreach": True}, gpu) == {}
    assert fused_option("sgd", {}, gpu) == {}


@pytest.mark.parametrize(("saved", "now"), [(True, False), (False, True)])
def test_a_state_of_another_kind_is_loaded_and_computes_as_the_process_does(saved, now):
    parts = [batches(4, 3, seed=seed) for seed in range(4)]
    one, other = Training(fused=saved), Training(fused=saved)
    for part in parts[:2]:
        one.update(part)
        other.update(part)
    one.read()
    moved = Training(fused=now)
    moved.model.load_state_dict(one.model.state_dict())
    load_optimizer(moved.optimizer, copy.deepcopy(one.optimizer.state_dict()))
    moved.scheduler.load_state_dict(one.scheduler.state_dict())
    assert bool(moved.optimizer.param_groups[0]["fused"]) == now
    for part in parts[2:]:
        moved.update(part)
        other.update(part)
    moved.read()
    other.read()
    for a, b in zip(moved.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(s["step"] == 4 for s in moved.optimizer.state.values())
