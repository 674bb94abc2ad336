"""Checkpoints of Lamer on HuBERT-Large are small: what trains, and no backbone."""

from pathlib import Path

import pytest
import torch
import yaml

import espnet2_lamer.asr.encoder.lamer_hubert as module
from espnet2_lamer.asr.encoder.lamer_hubert import LamerHubertEncoder
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.hubert.espnet_model import LamerHubertPretrainModel

CONF = Path(__file__).parents[2] / "conf"
LIMIT = 100_000_000
UNITS, DIM, FFN, FINAL, EXPERTS, RANK = 1000, 1024, 4096, 768, 120, 12
LORA = EXPERTS * 2 * RANK * (DIM + FFN)
ROUTER = EXPERTS * DIM
HEAD = UNITS * FINAL + DIM * FINAL + FINAL
TOKENS = [*map(str, range(UNITS)), "<unk>", "<sos/eos>"]


def encoder_options(name="train_ssl_lamer.yaml", **lamer):
    conf = yaml.safe_load((CONF / name).read_text(encoding="utf-8"))["encoder_conf"]
    if conf.get("lamer") is not None:
        conf["lamer"] |= lamer
    return conf


@pytest.fixture
def without_values(monkeypatch):
    """Build on a HuBERT-Large of which only the shapes are there."""

    def load(source, dropouts):
        model = build_hubert({})
        model.mask_embedding = torch.rand(DIM)
        return model

    monkeypatch.setattr(module, "load_hubert", load)
    monkeypatch.setattr(module, "source_sha256", lambda source: "ab" * 32)

    def build(conf):
        with torch.device("meta"):
            encoder = LamerHubertEncoder(num_classes=UNITS, base="large", **conf)
            return LamerHubertPretrainModel(encoder, TOKENS)

    return build


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_a_checkpoint_without_optimizer_state_is_below_100_mb(
    without_values, balance, tmp_path
):
    state = without_values(encoder_options(balance=balance)).state_dict()
    values = sum(v.numel() for v in state.values() if v.is_floating_point())
    # Selection bias and load of each expert.
    extra = 2 * EXPERTS if balance == "bias" else 0
    assert values == LORA + ROUTER + HEAD + extra
    real = {name: torch.empty_like(v, device="cpu") for name, v in state.items()}
    path = tmp_path / "1epoch.pth"
    torch.save(real, path)
    assert 4 * values < path.stat().st_size < LIMIT


@pytest.mark.parametrize(
    "name",
    ["milore", "hubert_lora", "lamer_projection_router", "lamer_beside_ffn"],
)
def test_so_are_those_of_the_rest_of_the_family(without_values, name):
    conf = encoder_options(f"tuning/train_ssl_{name}.yaml")
    state = without_values(conf).state_dict()
    assert sum(v.numel() * v.element_size() for v in state.values()) < LIMIT


@pytest.mark.slow
def test_hubert_large_really_saved_and_rebuilt(tmp_path):
    """1.3 GB on disk, 4 GB of memory."""
    from espnet2_lamer import load_model
    from espnet2_lamer.convert.huggingface import save_huggingface

    torch.manual_seed(0)
    base = build_hubert({})
    base.mask_embedding = torch.rand(DIM)
    save_huggingface(base, tmp_path / "base")
    del base
    conf = encoder_options(balance="bias") | {"base": str(tmp_path / "base")}
    encoder = LamerHubertEncoder(num_classes=UNITS, **conf).eval()
    with torch.no_grad():
        for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
            if name.endswith(("lora_B", "selection_bias")):
                tensor.normal_(std=0.02)
    experiment = tmp_path / "exp"
    experiment.mkdir()
    config = {"encoder": "lamer_hubert", "model": "lamer", "num_classes": UNITS}
    config |= {"encoder_conf": conf, "model_conf": {}, "token_list": TOKENS}
    (experiment / "config.yaml").write_text(yaml.safe_dump(config))
    model = LamerHubertPretrainModel(encoder, TOKENS).eval()
    torch.save(model.state_dict(), experiment / "latest.pth")
    assert (experiment / "latest.pth").stat().st_size < LIMIT
    speech = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, _ = encoder.wav2vec2.extract_features(speech)
    del model, encoder
    found, _ = load_model(experiment).extract_features(speech)
    # The last state of ours is taken after the final LayerNorm.
    for one, other in zip(found[1:-1], expected[:-1], strict=True):
        assert torch.equal(one, other)
