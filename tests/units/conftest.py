"""Noise utterances of odd lengths, a codebook learned on them, tiny teachers."""

import numpy as np
import pytest
import soundfile

from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.units.features import dump_features
from espnet2_lamer.units.kmeans import KmeansConfig, learn_kmeans
from espnet2_lamer.units.teacher import load_teacher
from tests.tiny_hubert import ARCHITECTURE

NUM_UTTS = 24
K = 8


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    """Data directory: wav.scp, utt2lang, utt2num_samples."""
    root = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    wav_scp, utt2lang, utt2num_samples = {}, {}, {}
    for number in range(NUM_UTTS):
        utt = f"utt{number:02d}"
        samples = int(rng.integers(8000, 24000)) if number else 400
        noise = 0.1 * rng.standard_normal(samples)
        tone = np.sin(2 * np.pi * rng.integers(100, 3000) * np.arange(samples) / 16000)
        path = root / f"{utt}.flac"
        soundfile.write(path, noise + 0.3 * tone, 16000)
        wav_scp[utt] = str(path)
        utt2lang[utt] = ("cmn", "eng", "yue")[number % 3]
        utt2num_samples[utt] = str(samples)
    write_table(root / "wav.scp", wav_scp)
    write_table(root / "utt2lang", utt2lang)
    write_table(root / "utt2num_samples", utt2num_samples)
    return root


@pytest.fixture(scope="session")
def mfcc():
    return load_teacher("mfcc")


@pytest.fixture(scope="session")
def features(speech, mfcc, tmp_path_factory):
    output = tmp_path_factory.mktemp("features")
    dump_features(
        mfcc,
        speech / "wav.scp",
        output,
        utt2lang=speech / "utt2lang",
        shard_utts=7,
    )
    return output


@pytest.fixture(scope="session")
def codebook(features, tmp_path_factory):
    path = tmp_path_factory.mktemp("codebook") / "codebook.npz"
    learn_kmeans(
        features, path, KmeansConfig(K, n_init=2, batch_size=200, max_passes=3)
    )
    return path


@pytest.fixture(scope="session")
def hubert_dirs(tmp_path_factory):
    """Random three-layer HuBERTs of both kinds, as Hugging Face directories."""
    import torch

    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    directories = {}
    for mode in ("layer_norm", "group_norm"):
        large = mode == "layer_norm"
        torch.manual_seed(0)
        model = build_hubert(
            {
                **ARCHITECTURE,
                "extractor_mode": mode,
                "extractor_conv_bias": large,
                "encoder_num_layers": 3,
                "encoder_layer_norm_first": large,
            }
        )
        directories[mode] = tmp_path_factory.mktemp(mode) / "hubert"
        save_huggingface(model, directories[mode])
    return directories
