"""A head trained on stored features is the head trained with the upstream in the loop.

On the embedded corpus with the committed base, through ESPnet's own training, without
dropout and SpecAugment. The upstream in the loop is this package's frontend and, slow
to import, ESPnet's ``frontend: s3prl``.
"""

import argparse
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_lamer.evaluation.downstream import HeadOptions, train_head

ROOT = Path(__file__).parents[2]
BASE = ROOT / "egs2/lamer_ssl/ssl1/mini/base"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from espnet2_lamer.data.mini import build_mini
    from espnet2_lamer.evaluation.benchmark_sets import prepare_asr_data

    root = tmp_path_factory.mktemp("same_head")
    build_mini(root / "data", nj=1, seed=0, minutes_scale=0.04)
    prepare_asr_data(root / "data", root / "dump", ["eng"], {"eng": "char"})
    text = (ROOT / "conf/train_asr_mlsuperb.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text) | {
        "specaug": None,
        "specaug_conf": {},
        "num_workers": 0,
        "max_epoch": 1,
        "num_iters_per_epoch": 1,
        "accum_grad": 1,
    }
    for key in config["encoder_conf"]:
        if key.endswith("dropout_rate"):
            config["encoder_conf"][key] = 0.0
    (root / "head.yaml").write_text(yaml.safe_dump(config))
    return root


def train(corpus, name, layer, upstream=BASE, **options):
    """Train one update and return the experiment and ESPnet's loss of it."""
    raw, exp = corpus / "dump/raw", corpus / name
    train_head(
        upstream,
        raw / "asr_eng_train",
        raw / "asr_eng_dev",
        corpus / "store",
        exp,
        corpus / "head.yaml",
        HeadOptions(layer=layer, **options),
    )
    stats = torch.load(exp / "checkpoint.pth", weights_only=True)["reporter"]["stats"]
    return exp, stats[1]["train"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("layer", [3, "all"])
def test_the_first_loss_is_that_of_the_upstream_in_the_loop(corpus, layer):
    exp, live = train(corpus, f"live_{layer}", layer, feature_store_gb=0)
    config = yaml.safe_load((exp / "config.yaml").read_text())
    assert config["frontend"] == "lamer_upstream"
    for dtype, tolerance in (("float32", 1e-5), ("float16", 1e-4)):
        exp, stored = train(corpus, f"{dtype}_{layer}", layer, store_dtype=dtype)
        config = yaml.safe_load((exp / "config.yaml").read_text())
        assert config["frontend"] == "stored_features"
        assert stored == pytest.approx(live, rel=tolerance), dtype


@pytest.mark.slow
def test_both_ways_write_a_whole_model_and_the_same_keys(corpus):
    weights = []
    for name, limit in (("live_3", 0), ("float32_3", 50)):
        train(corpus, name, 3, feature_store_gb=limit)
        path = corpus / name / "final/model.pth"
        weights.append(torch.load(path, weights_only=True))
        # The upstream lies in a file already: no checkpoint of training repeats it.
        saved = torch.load(corpus / name / "1epoch.pth", weights_only=True)
        assert not [key for key in saved if "upstream" in key]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        # One update of Adam at 1e-4 moves a weight by no more than that.
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [3, "all"])
def test_the_first_loss_is_that_of_espnets_s3prl_frontend(corpus, layer):
    """The stock path: ``frontend: s3prl`` with the same base, frozen."""
    import kaldiio
    import soundfile

    from espnet2_lamer import load_model
    from espnet2_lamer.compat import patch_torchaudio_for_s3prl
    from espnet2_lamer.convert import load_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface
    from espnet2_lamer.fileio.datadir import read_table
    from espnet2_lamer.tasks.asr import LamerASRTask

    upstream = load_model(BASE)
    # Through transformers 5, S3PRL gets the last state before the final LayerNorm.
    upstream.final_norm = False
    exp, _ = train(corpus, f"stock_{layer}", layer, upstream)
    config = yaml.safe_load((exp / "config.yaml").read_text())
    torch.manual_seed(0)
    stored = LamerASRTask.build_model(argparse.Namespace(**config)).eval()
    patch_torchaudio_for_s3prl()
    # The committed weights are half precision, which S3PRL would compute in.
    save_huggingface(load_hubert(BASE), corpus / "base")
    config["frontend"] = "s3prl"
    config["frontend_conf"] = {
        "frontend_conf": {
            "upstream": "hf_hubert_custom",
            "path_or_url": str(corpus / "base"),
        },
        "multilayer_feature": layer == "all",
        "layer": -1 if layer == "all" else layer,
    }
    stock = LamerASRTask.build_model(argparse.Namespace(**config)).eval()
    head = {k: v for k, v in stored.state_dict().items() if "frontend" not in k}
    missing = stock.load_state_dict(head, strict=False).missing_keys
    assert all(key.startswith("frontend.") for key in missing)

    raw = corpus / "dump/raw/asr_eng_train"
    audio, texts = read_table(raw / "wav.scp"), read_table(raw / "text")
    features = kaldiio.load_scp(str(exp / "data/train/feats.scp"))
    tokens = {token: index for index, token in enumerate(config["token_list"])}

    def loss(model, read):
        total = 0.0
        for utt in list(audio)[:4]:
            ids = [tokens["<space>" if c == " " else c] for c in texts[utt]]
            speech = torch.as_tensor(read(utt))[None]
            with torch.no_grad():
                total += model(
                    speech,
                    torch.tensor([speech.shape[1]]),
                    torch.tensor([ids]),
                    torch.tensor([len(ids)]),
                )[0].item()
        return total

    expected = loss(stock, lambda utt: soundfile.read(audio[utt], dtype="float32")[0])
    found = loss(stored, lambda utt: features[utt].copy())
    assert found == pytest.approx(expected, rel=1e-4)
