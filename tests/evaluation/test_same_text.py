"""Stored features, waveforms and packed models give one text; both heads one rate.

On a few tones that a tiny head can learn, with dropout and SpecAugment on.
"""

import kaldiio
import pytest
import torch
import yaml

from espnet2_lamer.evaluation import decoding
from espnet2_lamer.evaluation.ctc_prefix import greedy_prefix_search
from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.feature_store import count_samples
from espnet2_lamer.evaluation.scoring import score_files
from espnet2_lamer.fileio.datadir import read_table
from tests.evaluation.test_downstream import CONFIG, GREEDY, TINY, write_set

NOISY = {
    **CONFIG,
    "amp_dtype": "none",
    "specaug": "specaug",
    "specaug_conf": {
        "apply_time_warp": True,
        "time_warp_window": 5,
        "apply_freq_mask": True,
        "freq_mask_width_range": [0, 3],
        "num_freq_mask": 2,
        "apply_time_mask": True,
        "time_mask_width_ratio_range": [0.0, 0.05],
        "num_time_mask": 2,
    },
    "encoder_conf": {**CONFIG["encoder_conf"], "dropout_rate": 0.1},
    "max_epoch": 2,
    "num_iters_per_epoch": 45,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data, an upstream and a config."""
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    root = tmp_path_factory.mktemp("same_text")
    torch.manual_seed(0)
    save_huggingface(build_hubert(TINY["hubert"]), root / "upstream")
    for name, count, seed in (("train", 9, 1), ("dev", 4, 2), ("test", 24, 3)):
        write_set(root / name, name, count, seed)
    (root / "head.yaml").write_text(yaml.safe_dump(NOISY))
    (root / "decode.yaml").write_text(yaml.safe_dump(GREEDY))
    return root


def train_and_decode(root, name, feature_store_gb):
    final = train_head(
        root / "upstream",
        root / "train",
        root / "dev",
        root / f"store_{name}",
        root / name,
        root / "head.yaml",
        HeadOptions(layer=1, feature_store_gb=feature_store_gb),
    )
    for data in ("dev", "test"):
        decoding.decode(
            final,
            root / data / "wav.scp",
            root / name / f"decode_{data}",
            root / "decode.yaml",
        )
    return root / name


@pytest.fixture(scope="module")
def stored(root):
    """A head trained on stored features."""
    return train_and_decode(root, "stored", 50.0)


def hypotheses(head, data):
    return head / f"decode_{data}" / "1best_recog" / "text"


@pytest.mark.slow
def test_both_ways_of_training_give_error_rates_whose_intervals_overlap(root, stored):
    scores, losses = {}, {}
    live = train_and_decode(root, "live", 0.0)
    for head, frontend in ((stored, "stored_features"), (live, "lamer_upstream")):
        name = head.name
        config = yaml.safe_load((head / "config.yaml").read_text())
        assert config["frontend"] == frontend and config["specaug"] == "specaug"
        hyp = hypotheses(head, "test")
        scores[name] = score_files(root / "test" / "text", hyp, "char")
        checkpoint = torch.load(head / "checkpoint.pth", weights_only=True)
        stats = checkpoint["reporter"]["stats"]
        losses[name] = [stats[epoch]["train"]["loss"] for epoch in sorted(stats)]
    (low, high), (other_low, other_high) = (s.interval for s in scores.values())
    assert max(low, other_low) <= min(high, other_high), scores
    # One seed is one stream of dropout and masks, upstream in the loop or not.
    assert losses["stored"] == pytest.approx(losses["live"], rel=1e-2)
    # Two heads that learnt nothing would overlap as well.
    assert max(score.error_rate for score in scores.values()) < 90


def test_stored_features_and_waveforms_are_decoded_to_the_same_text(stored):
    from espnet2_lamer.tasks.asr import LamerASRTask

    model, args = LamerASRTask.build_model_from_file(
        stored / "config.yaml", stored / "valid.loss.ave.pth"
    )
    model.eval()
    features = kaldiio.load_scp(str(stored / "data/dev/feats.scp"))
    texts = read_table(hypotheses(stored, "dev"))
    assert len(set(texts.values())) > 1
    for utt, text in texts.items():
        feats = torch.from_numpy(features[utt].copy())[None]
        with torch.no_grad():
            encoded, _ = model.encode(feats, torch.tensor([feats.shape[1]]))
            log_probs = model.ctc.log_softmax(encoded)[0].numpy()
        ids = greedy_prefix_search(log_probs, model.blank_id, model.eos)
        tokens = [args.token_list[i] for i in ids]
        found = "".join(" " if token == "<space>" else token for token in tokens)
        assert found.strip() == text


def test_a_packed_head_decodes_waveforms_to_the_same_text(root, stored, tmp_path):
    from espnet2_lamer.export.zoo import pack_model, unpack_model

    final = stored / "final"
    archive = tmp_path / "head.zip"
    pack_model("asr", final / "config.yaml", final / "model.pth", archive)
    files = unpack_model(archive, tmp_path / "cache")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for key, name in (
        ("asr_train_config", "config.yaml"),
        ("asr_model_file", "model.pth"),
    ):
        (unpacked / name).symlink_to(files[key])
    samples = count_samples(root / "dev" / "wav.scp")
    found = decoding.decode_utterances(unpacked, samples, GREEDY)
    expected = read_table(hypotheses(stored, "dev"))
    assert {utt: text.strip() for utt, (text, _, _) in found.items()} == expected
