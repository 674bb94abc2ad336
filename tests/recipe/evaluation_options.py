"""Options of which only what decides about the evaluation is real."""

import dataclasses
from pathlib import Path

from espnet2_lamer.recipe.options import Options

CONF = Path(__file__).parents[2] / "conf"


def options_of(root, **changes):
    """Return options whose directories are below ``root``, with some changed."""
    values = {field.name: None for field in dataclasses.fields(Options)}
    values |= {
        "expdir": root / "exp",
        "datadir": root / "data",
        "dumpdir": root / "dump",
        "replay_langs": ["eng"],
        "new_langs": ["cmn", "yue"],
        "units": {"eng": "char", "cmn": "pinyin", "yue": "jyutping"},
        "base": "the/base",
        "ssl_tag": "lamer",
        "upstreams": ["base", "lamer"],
        "seed": 0,
        "benchmark": "paper",
        "budgets": ["1h"],
        "tracks": ["asr", "lid"],
        "eval_langs": [],
        "eval_corpora": [],
        "text_norm": "unicode",
        "upstream_mode": ["eval"],
        "cross_corpus": False,
        "tune": ["head"],
        "finetune_config": CONF / "train_asr_finetune.yaml",
        "use_ngram": False,
        "use_lm": False,
        "lm_train_text": {},
        "inference_config": CONF / "decode_asr_finetune.yaml",
        "lid_reading": "per_set",
        "multi_unit": "char",
        "nbpe": 200,
        "feature_store_gb": 50.0,
        "asr_layer": 22,
        "lid_layer": 21,
        "asr_config": CONF / "train_asr_mlsuperb.yaml",
        "multi_config": CONF / "train_multi_asr_mlsuperb.yaml",
        "lid_config": CONF / "train_lid_mlsuperb.yaml",
    }
    return Options(**values | changes)
