"""``grad_norm_groups`` on a model with experts: each group's norm, before clipping."""

import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet2_lamer.train.figures import Figures
from espnet2_lamer.train.update import Updater

GROUPS = ("lora_A", "lora_B", "routers")


def update(parts, batches, **changes):
    """Add up batches and step once; figures, and the gradients before clipping."""
    for name, value in changes.items():
        setattr(parts.options, name, value)
    gradients = {}
    real = torch.nn.utils.clip_grads_with_norm_

    def look(*arguments):
        for name, parameter in parts.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.double().clone()
        return real(*arguments)

    updater = Updater(parts.model, parts.optimizer, None, None, parts.options)
    reporter = Reporter().start_epoch("train", 1)
    figures = Figures(reporter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grads_with_norm_", look)
        for number, (names, batch) in enumerate(batches, 1):
            last = number == len(batches)
            updater.add(names, batch, figures, last)
            if last:
                updater.step(figures)
            figures.next()
    figures.flush()
    return {k: float(v[-1].value) for k, v in reporter.stats.items()}, gradients


@pytest.fixture
def parts(make_parts):
    """Parts whose experts do something, and so have gradients everywhere."""
    parts = make_parts()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in parts.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    return parts


def test_each_groups_norm_is_that_of_its_tensors_before_clipping(parts):
    batches = list(parts.train.build_iter(1))[:2]
    found, gradients = update(parts, batches, grad_norm_groups=True, grad_clip=1e-3)
    squares = dict.fromkeys([*GROUPS, "other"], 0.0)
    for name, gradient in gradients.items():
        (group,) = [g for g in GROUPS if g in name] or ["other"]
        squares[group] += gradient.square().sum().item()
    for group, square in squares.items():
        assert square > 0
        assert found[f"grad_norm_{group}"] == pytest.approx(square**0.5, rel=1e-5)
    assert found["grad_norm"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)
    assert found["grad_norm"] > 1e-3 and found["clip"] == 100.0


def test_without_the_option_only_the_norm_of_all_is_reported(parts):
    batches = list(parts.train.build_iter(1))[:1]
    found, _ = update(parts, batches, grad_norm_groups=False)
    assert [key for key in found if key.startswith("grad_norm")] == ["grad_norm"]
