"""Every family of bases: load, train one update, extract, export, reload."""

import argparse

import pytest
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.convert.families import FAMILIES, LIKE_HUBERT
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.adapter import write_adapter
from espnet2_lamer.export.card import Origin
from espnet2_lamer.export.dense import mean_gates, merge_experts
from espnet2_lamer.export.huggingface import write_huggingface
from espnet2_lamer.export.s3prl import write_s3prl
from espnet2_lamer.export.zoo import write_full_model
from espnet2_lamer.units.teacher import load_teacher
from tests import families
from tests.export.tiny import speech, states_of

UNITS = 5


def train_one_update(experiment, base):
    """Write what a pretraining on ``base`` leaves after one update."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    config = {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "num_classes": UNITS,
        "token_list": [*map(str, range(UNITS)), "<unk>", "<sos/eos>"],
        "encoder_conf": {
            "base": str(base),
            "lamer": {"allocation": "2,4", "rank": 2},
            "final_dim": 8,
        },
        "model_conf": {},
        "best_model_criterion": [["valid", "loss_m", "min"]],
        "input_size": 1,
        **dict.fromkeys(("frontend", "specaug", "normalize", "preencoder", "init")),
        "frontend_conf": {},
    }
    torch.manual_seed(2)
    model = LamerHubertTask.build_model(argparse.Namespace(**config)).train()
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    waves, lengths = speech()
    frames = (lengths - 400) // 320 + 1
    units = torch.arange(9).expand(3, 9) % UNITS
    units = units.masked_fill(torch.arange(9) >= frames[:, None], -1)
    masked = torch.tensor([[0, 1, 4], [2, 3, -1], [0, -1, -1]])
    loss, _, _ = model(waves, lengths, units, frames, masked)
    assert loss.isfinite()
    loss.backward()
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    experts = [p.grad for k, p in trained.items() if k.endswith("lora_B")]
    assert len(experts) == 4 and all(grad.abs().max() > 0 for grad in experts)
    torch.optim.SGD(trained.values(), 1.0).step()
    for name, before in frozen.items():
        assert torch.equal(model.get_parameter(name), before)
    experiment.mkdir()
    (experiment / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.eval().state_dict(), experiment / "valid.loss_m.best.pth")
    return model


@pytest.mark.parametrize("form", ["transformers", "fairseq"])
@pytest.mark.parametrize("kind", families.KINDS)
def test_load_train_extract_export_reload(tmp_path, kind, form):
    import transformers

    family = families.KINDS[kind][0]
    reference = families.write(tmp_path / "base", kind)
    base = tmp_path / "base"
    if form == "fairseq":
        base = families.write_fairseq(tmp_path / "base.pt", reference, kind)
    experiment = tmp_path / "exp"
    model = train_one_update(experiment, base)
    upstream = espnet2_lamer.load_model(experiment)
    expected = states_of(upstream)

    # The training's own loop over real frames gives what is extracted; of a group
    # norm, whose statistics hear the padding of a training's batch, without padding.
    waves, lengths = speech()
    nothing = torch.zeros(3, 9, dtype=torch.bool)
    with torch.no_grad():
        packed = model.encoder(waves, lengths, nothing, with_unmasked=True)
    alone = upstream.wav2vec2.extractor_mode == "group_norm"
    frames = expected["frames"].tolist()
    for row, count in enumerate(frames[:1] if alone else frames):
        torch.testing.assert_close(
            packed.hidden[row, :count],
            expected["batch.2"][row, :count],
            rtol=1e-5,
            atol=1e-5,
        )

    write_full_model(experiment, tmp_path / "full")
    write_s3prl(experiment, tmp_path / "s3prl")
    adapter = tmp_path / "adapter.safetensors"
    write_adapter(experiment, adapter, Origin())
    for found in (
        espnet2_lamer.load_model(tmp_path / "full"),
        espnet2_lamer.load_model(tmp_path / "s3prl"),
        espnet2_lamer.load_model(adapter, base=base),
    ):
        again = states_of(found)
        assert all(torch.equal(again[name], value) for name, value in expected.items())

    plain = merge_experts(upstream, mean_gates(upstream, [waves[0]], "eng"))
    write_huggingface(plain, tmp_path / "dense")
    dense = transformers.AutoModel.from_pretrained(tmp_path / "dense").eval()
    assert type(dense).__name__ == FAMILIES[family].model
    same = states_of(espnet2_lamer.load_model(tmp_path / "dense"))
    assert all(torch.equal(same[k], v) for k, v in states_of(plain).items())

    if family in LIKE_HUBERT:
        write_huggingface(upstream, tmp_path / "hf")
    else:
        with pytest.raises(RecipeError, match="--kind zoo, s3prl or adapter"):
            write_huggingface(upstream, tmp_path / "hf")

    teacher = load_teacher(str(base), 1)
    label = teacher.forward(waves[1, : lengths[1]].numpy())
    plain_states, _ = espnet2_lamer.load_model(base).extract_features(waves, lengths)
    count = int(expected["frames"][1])
    torch.testing.assert_close(
        torch.from_numpy(label), plain_states[1][1, :count], rtol=1e-5, atol=1e-5
    )
