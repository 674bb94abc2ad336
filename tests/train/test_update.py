"""An update is the sum over all its masked frames divided by their number."""

import math
from types import SimpleNamespace

import pytest
import torch
from espnet2.train.reporter import Reporter
from torch import nn

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.figures import Figures
from espnet2_lamer.train.update import PolynomialDecayLR, Updater


class Toy(nn.Module):
    """Mean squared error over frames; the weight is their number."""

    def __init__(self):
        super().__init__()
        self.lora_A = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.lora_B = nn.Parameter(torch.tensor([0.3, 0.1, -0.4]))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def adapter_parameters(self):
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    def forward(self, x, y):
        prediction = (x * self.lora_A + x.sin() * self.lora_B) @ self.frozen
        loss = (prediction - y).square().mean()
        return loss, {"loss": loss.detach()}, torch.tensor(float(len(x)))


def batches(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(size, 3, generator=generator),
            "y": torch.randn(size, generator=generator),
        }
        for size in sizes
    ]


def options(**changes):
    values = {
        "accum_grad": 3,
        "grad_clip": 1e9,
        "grad_clip_type": 2.0,
        "max_bad_updates": 3,
        "grad_norm_groups": False,
    }
    return SimpleNamespace(**{**values, **changes})


class Training:
    """A toy model with plain gradient descent, and what the reporter got."""

    def __init__(self, scheduled=False, lr=0.01, **changes):
        self.model = Toy()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=lr)
        self.scheduler = None
        if scheduled:
            self.scheduler = PolynomialDecayLR(self.optimizer, 0, 10)
        self.updater = Updater(
            self.model, self.optimizer, self.scheduler, None, options(**changes)
        )
        self.reporter = Reporter().start_epoch("train", 1)
        self.figures = Figures(self.reporter)

    def update(self, parts, names=("utt1", "utt2")):
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            self.updater.add(list(names), part, self.figures, last)
            if last:
                self.updater.step(self.figures)
            self.figures.next()
        self.updater.settle()
        self.figures.flush()

    def figure(self, name):
        return self.reporter.stats[name][-1].value


def gradient(parts, model):
    """Of the mean over all frames of all batches, by autograd on their union."""
    model.zero_grad()
    whole = {key: torch.cat([part[key] for part in parts]) for key in ("x", "y")}
    model(**whole)[0].backward()
    return model.lora_A.grad, model.lora_B.grad


@pytest.mark.parametrize("sizes", [(5,), (1, 9), (4, 1, 7), (2, 2, 2)])
def test_an_update_is_that_of_all_frames_in_one_batch(sizes):
    parts = batches(*sizes)
    training = Training()
    expected = [
        start - 0.01 * grad
        for start, grad in zip(
            (Toy().lora_A, Toy().lora_B), gradient(parts, Toy()), strict=True
        )
    ]
    training.update(parts)
    torch.testing.assert_close(training.model.lora_A.data, expected[0].data)
    torch.testing.assert_close(training.model.lora_B.data, expected[1].data)


def test_nothing_of_an_update_leaks_into_the_next():
    first, second = batches(4), batches(3, 6, seed=1)
    training = Training()
    # An update of fewer batches than accum_grad, as at the end of an epoch.
    training.update(first)
    assert training.updater.pending == 0
    fresh = Training()
    fresh.model.load_state_dict(training.model.state_dict())
    for found in (training, fresh):
        found.update(second)
    assert torch.equal(training.model.lora_A, fresh.model.lora_A)
    assert torch.equal(training.model.lora_B, fresh.model.lora_B)


def test_each_batch_is_reported_with_its_own_loss_and_weight():
    parts = batches(4, 1, 7)
    expected = [Toy()(**part)[0].item() for part in parts]
    training = Training()
    training.update(parts)
    rows = training.reporter.stats["loss"]
    assert [row.value for row in rows] == pytest.approx(expected)
    assert [row.weight for row in rows] == [4, 1, 7]


def test_the_norm_is_that_before_clipping_and_clipped_updates_are_counted():
    parts = batches(4, 3)
    norm = math.sqrt(sum(g.square().sum().item() for g in gradient(parts, Toy())))
    for clip, percent in ((norm * 1.01, 0.0), (norm * 0.5, 100.0)):
        training = Training(grad_clip=clip, lr=1.0)
        training.update(parts)
        assert training.figure("grad_norm") == pytest.approx(norm)
        assert training.figure("clip") == percent
        moved = [
            (new - old).detach()
            for new, old in zip(
                (training.model.lora_A, training.model.lora_B),
                (Toy().lora_A, Toy().lora_B),
                strict=True,
            )
        ]
        length = torch.cat(moved).norm().item()
        assert length == pytest.approx(min(norm, clip), rel=1e-5)


def test_norms_of_groups_make_up_the_whole():
    parts = batches(4, 3)
    training = Training(grad_norm_groups=True)
    training.update(parts)
    groups = [training.figure(f"grad_norm_lora_{x}") for x in "AB"]
    expected = [grad.norm().item() for grad in gradient(parts, Toy())]
    assert groups == pytest.approx(expected)
    assert math.hypot(*groups) == pytest.approx(training.figure("grad_norm"))


def poisoned(seed=0):
    (part,) = batches(4, seed=seed)
    part["x"][0, 0] = math.nan
    return [part]


def test_a_bad_update_changes_neither_weights_nor_schedule_and_is_counted():
    training = Training(scheduled=True)
    before = training.model.lora_A.detach().clone()
    rate = training.optimizer.param_groups[0]["lr"]
    training.update(poisoned())
    assert torch.equal(training.model.lora_A, before)
    assert training.optimizer.param_groups[0]["lr"] == rate
    assert training.figure("bad_update") == 100.0
    assert "grad_norm" not in training.reporter.stats
    training.update(batches(4))
    assert training.figure("bad_update") == 0.0
    assert training.optimizer.param_groups[0]["lr"] < rate
    assert training.model.lora_A.isfinite().all()


def test_one_bad_batch_spoils_the_whole_update_and_nothing_after_it():
    training = Training()
    training.update([*batches(4), *poisoned()])
    other = Training()
    for found in (training, other):
        found.update(batches(5, 2, seed=3))
    assert torch.equal(training.model.lora_A, other.model.lora_A)


def test_bad_updates_end_training_only_in_a_row():
    training = Training(max_bad_updates=3)
    for _ in range(2):
        training.update(poisoned())
        training.update(poisoned())
        training.update(batches(4))
    training.update(poisoned())
    training.update(poisoned())
    with pytest.raises(RecipeError) as raised:
        training.update(poisoned(), names=("speaker3-7",))
    message = str(raised.value)
    assert message.startswith("3 updates in a row had a gradient that is not finite")
    assert "lora_A" in message and "speaker3-7" in message


@pytest.mark.parametrize(("batches_", "updates"), [(4, 2), (5, 3), (2, 1)])
def test_batches_left_over_at_an_epochs_end_make_an_update_of_their_own(
    batches_, updates, tmp_path, monkeypatch
):
    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from espnet2_lamer.train import run
    from tests.train.small_training import command, make_corpus

    make_corpus(tmp_path / "corpus", count=6)
    calls = []

    class Recorder(Updater):
        def add(self, names, batch, figures, last):
            calls.append(tuple(names))
            super().add(names, batch, figures, last)

        def step(self, figures, said):
            calls.append("update")
            super().step(figures, said)
            assert all(p.grad is None for p in self.model.parameters())

    monkeypatch.setattr(run, "Updater", Recorder)
    cmd = command(
        tmp_path / "corpus",
        tmp_path / "exp",
        accum_grad=2,
        num_iters_per_epoch=batches_,
        max_epoch=2,
        batch_bins=9600,
    )
    LamerHubertTask.main(cmd=cmd)
    epoch = len(calls) // 2
    for part in (calls[:epoch], calls[epoch:]):
        assert part.count("update") == updates and part[-1] == "update"
        assert len(part) == batches_ + updates
        # Two batches before each update but the last of an odd number.
        places = [n for n, call in enumerate(part) if call == "update"]
        assert places[:-1] == [2 + 3 * n for n in range(updates - 1)]
    state = run.CheckpointStore(tmp_path / "exp" / "checkpoints").load()
    assert state["updates"] == 2 * updates
