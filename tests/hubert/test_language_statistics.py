"""Figures per language against plain counting, and through the model."""

import math

import pytest
import torch
from torch.nn import functional as F

from espnet2_lamer.hubert.statistics import LanguageStatistics


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_means_over_each_languages_masked_frames(seed):
    generator = torch.Generator().manual_seed(seed)
    statistics = LanguageStatistics(["cmn", "eng", "yue"])
    rows = []
    for _ in range(3):
        frames = int(torch.randint(5, 30, (), generator=generator))
        logits = torch.randn(frames, 4, generator=generator)
        labels = torch.randint(0, 4, (frames,), generator=generator)
        languages = torch.randint(0, 2, (frames,), generator=generator)
        statistics.add(logits, labels, languages)
        rows += zip(logits, labels, languages, strict=True)
    found = statistics.read()
    # No frame was Cantonese: nothing is said about it.
    assert sorted(found) == ["acc_m_cmn", "acc_m_eng", "bits_m_cmn", "bits_m_eng"]
    for number, name in enumerate(["cmn", "eng"]):
        own = [(x, y) for x, y, lang in rows if lang == number]
        right = sum(int(x.argmax() == y) for x, y in own)
        bits = sum(-F.log_softmax(x, -1)[y].item() for x, y in own) / math.log(2)
        assert found[f"acc_m_{name}"] == pytest.approx(right / len(own))
        assert found[f"bits_m_{name}"] == pytest.approx(bits / len(own), rel=1e-5)
    assert statistics.read() == {}


def test_the_model_counts_each_utterances_frames_for_its_language(build_model, batch):
    model = build_model()
    model.language_statistics.names = ["cmn", "yue"]
    _, stats, _ = model(**batch, lang=torch.tensor([[1], [0]]))
    found = model.language_statistics.read()
    # Five masked frames of the first utterance, two of the second.
    assert stats["acc_m"].item() == pytest.approx(
        (5 * found["acc_m_yue"] + 2 * found["acc_m_cmn"]) / 7
    )
    assert stats["loss_m_bits"].item() == pytest.approx(
        (5 * found["bits_m_yue"] + 2 * found["bits_m_cmn"]) / 7, rel=1e-5
    )


def test_languages_are_never_input(build_model, batch):
    model = build_model()
    model.language_statistics.names = ["cmn", "yue"]
    expected = model(**batch)[0]
    for numbers in ([[0], [1]], [[1], [1]]):
        assert torch.equal(model(**batch, lang=torch.tensor(numbers))[0], expected)
