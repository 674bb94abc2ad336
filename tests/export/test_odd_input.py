"""Heads through ESPnet's decoding: clips without a frame, beams above the tokens."""

import numpy as np
import pytest
import soundfile
import torch

import espnet2_lamer
from espnet2_lamer.asr.upstream import TooShortError, TooShortUttError
from espnet2_lamer.bin.asr_inference import main
from tests.export.family import build
from tests.export.test_doors import HEADS, write_head

SECOND = 16000


@pytest.fixture(scope="module")
def lid(tmp_path_factory):
    """Config and weights of a head for three languages."""
    espnet2_lamer.register()
    upstream = build({"allocation": "2,4", "rank": 2})
    changes = HEADS["lid"] | {"use_preprocessor": False}
    final = write_head(tmp_path_factory.mktemp("lid"), upstream, 1, **changes)
    return {
        "asr_train_config": str(final / "config.yaml"),
        "asr_model_file": str(final / "model.pth"),
    }


def wave(samples):
    return torch.randn(samples, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("ctc_weight", [1.0, 0.5])
def test_a_vocabulary_of_few_languages_takes_espnets_default_beam(lid, ctc_weight):
    from espnet2.bin.asr_inference import Speech2Text

    model = Speech2Text(**lid, ctc_weight=ctc_weight)
    assert model.beam_search.beam_size == len(HEADS["lid"]["token_list"])
    narrow = Speech2Text(**lid, ctc_weight=ctc_weight, beam_size=4)
    assert narrow.beam_search.beam_size == 4
    for search in (model, narrow):
        assert len(search(wave(SECOND))) == 1


def test_a_clip_without_a_frame_does_not_end_the_decoding_of_a_set(lid, tmp_path):
    lengths = {"a": SECOND, "b": 399, "c": 1, "d": 0, "e": SECOND // 2}
    lines = []
    for utt, count in lengths.items():
        path = tmp_path / f"{utt}.wav"
        soundfile.write(path, np.zeros(count) + wave(count).numpy() * 0.1, SECOND)
        lines.append(f"{utt} {path}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    options = {
        **lid,
        "output_dir": tmp_path / "out",
        "data_path_and_name_and_type": f"{tmp_path / 'wav.scp'},speech,sound",
        "ctc_weight": 1.0,
        "ngpu": 0,
    }
    main([part for key, value in options.items() for part in (f"--{key}", str(value))])
    found = {}
    for name in ("text", "score"):
        lines = (tmp_path / "out/1best_recog" / name).read_text().splitlines()
        found[name] = {utt: rest for utt, _, rest in (x.partition(" ") for x in lines)}
        assert found[name].keys() == lengths.keys()
    for utt in "bcd":
        assert not found["text"][utt].strip() and found["score"][utt] == "0.0"
    # Those of a search are tensors.
    assert all(found["score"][utt].startswith("tensor(") for utt in "ae")


def test_the_error_is_espnets_and_says_which_utterance(lid):
    model = build({"allocation": "2,4", "rank": 2})
    for samples in ([SECOND, 399], [399], [0]):
        wavs = torch.zeros(len(samples), max(samples))
        place = f"utterance {len(samples)} of a batch of {len(samples)}"
        with pytest.raises(TooShortError, match=f"{place} has {samples[-1]}") as error:
            model.extract_features(wavs, torch.tensor(samples))
        assert isinstance(error.value, TooShortUttError)
        assert (error.value.actual_size, error.value.limit) == (samples[-1], 400)
