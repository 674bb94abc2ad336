"""A tiny upstream and head, and speech that they can learn."""

import numpy as np
import soundfile

from espnet2_lamer.evaluation import downstream, feature_store
from espnet2_lamer.fileio.datadir import write_table
from tests.tiny_hubert import ARCHITECTURE

TINY = {
    "hubert": {
        **ARCHITECTURE,
        "extractor_mode": "layer_norm",
    },
    "lamer": None,
    "final_norm": True,
}
CONFIG = {
    "normalize": "utterance_mvn",
    "preencoder": "linear",
    "preencoder_conf": {"output_size": 16},
    "encoder": "transformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "num_blocks": 1,
        "input_layer": "conv2d2",
    },
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0},
    # `auto` would be bf16 on some machines, and tests compare with float32.
    "amp_dtype": "none",
    "batch_type": "sorted",
    "batch_size": 3,
    "num_workers": 0,
    "max_epoch": 3,
    "num_iters_per_epoch": 30,
    "keep_nbest_models": 2,
    "best_model_criterion": [["valid", "loss", "min"]],
    "optim": "adam",
    "optim_conf": {"lr": 0.01},
    "use_matplotlib": False,
    "use_tensorboard": False,
    "num_att_plot": 0,
}
GREEDY = {"beam_size": 1, "ctc_weight": 1.0, "lm_weight": 0.0}
# Three "letters" that differ in pitch, so that a head can learn them.
PITCH = {"A": 200.0, "B": 800.0, " ": 2500.0}


def write_set(directory, prefix, count, seed, lang="eng"):
    rng = np.random.default_rng(seed)
    wavs, texts = {}, {}
    for number in range(count):
        utt = f"{prefix}_{number:02d}"
        text = "A" + "".join(rng.choice(list(PITCH), size=rng.integers(1, 4))) + "B"
        pieces = [
            np.sin(2 * np.pi * PITCH[c] * np.arange(4800 + 80 * number) / 16000)
            for c in text
        ]
        audio = np.concatenate(pieces) + 0.01 * rng.standard_normal(
            sum(map(len, pieces))
        )
        path = directory / "audio" / f"{utt}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * audio, 16000)
        wavs[utt], texts[utt] = str(path), text
    write_table(directory / "wav.scp", wavs)
    write_table(directory / "text", texts)
    write_table(directory / "utt2lang", dict.fromkeys(wavs, lang))
    return directory


def run_training(root, upstream, **options):
    return downstream.train_head(
        upstream,
        root / "train",
        root / "dev",
        root / "store",
        root / "exp",
        root / "head.yaml",
        downstream.HeadOptions(**options),
    )


def samples_of(data_dir):
    return feature_store.count_samples(data_dir / "wav.scp")
