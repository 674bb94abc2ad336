"""With dropout and SpecAugment on, both ways of training end at one error rate."""

import pytest
import torch
import yaml

from espnet2_lamer.evaluation import head_decoding
from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.scoring import score_files
from tests.evaluation.tiny_head import CONFIG, GREEDY, TINY, write_set

NOISY = {
    **CONFIG,
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


@pytest.mark.slow
def test_stored_and_in_the_loop_heads_have_overlapping_intervals(tmp_path):
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    torch.manual_seed(0)
    save_huggingface(build_hubert(TINY["hubert"]), tmp_path / "upstream")
    for name, count, seed in (("train", 9, 1), ("dev", 4, 2), ("test", 24, 3)):
        write_set(tmp_path / name, name, count, seed)
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(NOISY))
    (tmp_path / "decode.yaml").write_text(yaml.safe_dump(GREEDY))
    scores, losses = [], []
    # The head with the upstream in the loop first: it must find no features.
    for frontend, limit in (("lamer_upstream", 0.0), ("stored_features", 50.0)):
        exp = tmp_path / frontend
        final = train_head(
            tmp_path / "upstream",
            tmp_path / "train",
            tmp_path / "dev",
            tmp_path / "store",
            exp,
            tmp_path / "head.yaml",
            HeadOptions(layer=1, feature_store_gb=limit),
        )
        config = yaml.safe_load((exp / "config.yaml").read_text())
        assert (config["frontend"], config["specaug"]) == (frontend, "specaug")
        (hypotheses,) = head_decoding.decode(
            final,
            tmp_path / "test" / "wav.scp",
            {exp / "decode_test": False},
            tmp_path / "decode.yaml",
        )
        scores.append(score_files(tmp_path / "test" / "text", hypotheses, "char"))
        checkpoint = torch.load(exp / "checkpoint.pth", weights_only=True)
        stats = checkpoint["reporter"]["stats"]
        losses.append([stats[epoch]["train"]["loss"] for epoch in sorted(stats)])
    (low, high), (other_low, other_high) = (score.interval for score in scores)
    assert max(low, other_low) <= min(high, other_high), scores
    # One seed is one stream of dropout and masks, whichever way the features come.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    # Two heads that learnt nothing would overlap as well.
    assert max(score.error_rate for score in scores) < 90
