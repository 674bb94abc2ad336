"""A head of ML-SUPERB 2.0 that learnt the tones of its tiny tree."""

import yaml

from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.mlsuperb2 import prepare_mlsuperb2, set_name
from espnet2_lamer.upstream import build_upstream
from tests.evaluation.tiny_head import CONFIG, TINY
from tests.mlsuperb2_tree import CHORDS, utterances, write_folders

E_BRANCHFORMER = {
    "encoder": "e_branchformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "cgmlp_linear_units": 32,
        "cgmlp_conv_kernel": 7,
        "linear_units": 32,
        "num_blocks": 1,
        "use_ffn": True,
        "merge_conv_kernel": 7,
        "input_layer": "conv2d2",
    },
}


def train_joint(root, updates=240, config=None):
    """Train a head on ``root/tree``; return its experiment and the formatted sets."""
    write_folders(root / "tree", utterances(train=12, dev=3))
    prepare_mlsuperb2(root / "tree", root / "data", root / "dump", ["all"])
    raw = root / "dump/raw"
    settings = CONFIG | (config or {})
    settings |= {"max_epoch": 3, "num_iters_per_epoch": updates // 3, "batch_size": 6}
    (root / "head.yaml").write_text(yaml.safe_dump(settings))
    import torch

    torch.manual_seed(0)
    train_head(
        build_upstream(TINY),
        [raw / set_name(lang, "train") for lang in CHORDS],
        [raw / set_name(lang, "valid") for lang in CHORDS],
        root / "store",
        root / "exp",
        root / "head.yaml",
        HeadOptions(layer="all", target="lang_text"),
    )
    return root / "exp", raw
