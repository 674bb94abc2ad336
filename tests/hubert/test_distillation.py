"""Distillation: the distance to the base on replayed frames, and nothing else."""

import pytest
import torch
from torch.nn import functional as F

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.hubert.espnet_model import index_mask

WEIGHT = 0.7


@pytest.fixture
def distilling(build_model, base):
    """A model that replays language 1, and one of the same weights without."""

    def build(**options):
        with_it = build_model(base, model_conf={"distill_weight": WEIGHT}, **options)
        without = build_model(base, **options)
        with_it.replay_numbers = [1]
        return with_it, without

    return build


def distance(encoder, plain, batch, rows):
    """The formula, frame by frame; ``plain`` has no experts at all."""
    mask = index_mask(batch["mask_indices"], 9)
    total, frames = 0.0, 0
    for row in rows:
        outputs = []
        for model in (encoder, plain):
            with torch.no_grad():
                outputs.append(
                    model(batch["speech"], batch["speech_lengths"], mask).hidden[row]
                )
        for t in range(int(batch["text_lengths"][row])):
            total += 1 - F.cosine_similarity(outputs[0][t], outputs[1][t], dim=0)
            frames += 1
    return total / frames


@pytest.mark.parametrize(
    ("langs", "rows"), [([1, 0], [0]), ([0, 1], [1]), ([1, 1], [0, 1])]
)
def test_the_loss_has_the_mean_distance_over_replayed_frames(
    distilling, build_encoder, base, batch, langs, rows
):
    model, without = distilling()
    batch["lang"] = torch.tensor(langs)
    plain = build_encoder(base, {"allocation": 0})
    expected = distance(model.encoder, plain, batch, rows)
    assert expected > 1e-3
    loss, stats, _ = model(**batch)
    other, _, _ = without(**batch)
    torch.testing.assert_close(stats["distill"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, other + WEIGHT * expected, rtol=1e-5, atol=1e-5)


def test_a_batch_without_replay_has_the_plain_loss_and_gradients(distilling, batch):
    model, without = distilling()
    batch["lang"] = torch.tensor([0, 0])
    found = []
    for one in (model, without):
        loss, _, _ = one(**batch)
        loss.backward()
        found.append(
            (loss.detach(), [p.grad for p in one.parameters() if p.requires_grad])
        )
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_before_the_first_update_there_is_no_distance(distilling, batch):
    model, _ = distilling(fill=False)
    batch["lang"] = torch.tensor([1, 1])
    _, stats, _ = model(**batch)
    assert stats["distill"].abs() < 1e-6


def test_the_gradient_reaches_experts_and_routers_but_not_the_base(distilling, batch):
    model, _ = distilling()
    model.encoder.hubert_pretrain_model.logit_generator.requires_grad_(False)
    batch["lang"] = torch.tensor([1, 1])
    loss, _, _ = model(**batch)
    loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert any(n.endswith("lora_A") for n in trained)
    assert any("routers" in n for n in trained)
    assert all("lora_" in n or "routers" in n for n in trained)
    # The experts are there again.
    again, _, _ = model(**batch)
    torch.testing.assert_close(again, loss)


def test_without_experts_languages_or_replay_it_is_refused(build_model, base, batch):
    conf = {"distill_weight": WEIGHT}
    whole = build_model(base, lamer=None, model_conf=conf)
    with pytest.raises(
        RecipeError, match="distill_weight: .* without encoder_conf.lam"
    ):
        whole(**batch)
    model = build_model(base, model_conf=conf)
    with pytest.raises(RecipeError, match="without replayed languages"):
        model(**batch, lang=torch.tensor([0, 1]))
    model.replay_numbers = [1]
    with pytest.raises(RecipeError, match="without replayed languages"):
        model(**batch)


def test_a_head_only_control_has_nothing_to_distil(build_model, base, batch):
    model = build_model(
        base, lamer={"allocation": 0}, model_conf={"distill_weight": WEIGHT}
    )
    _, stats, _ = model(**batch)
    assert "distill" not in stats


def test_the_task_tells_the_model_which_languages_are_replayed(task_args):
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    args = task_args(langs=["cmn", "eng", "yue"], replay_langs=["eng"])
    assert LamerHubertTask.build_model(args).replay_numbers == [1]
