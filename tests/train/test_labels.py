"""Histograms, agreement with the audio and baselines, against plain counting."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.train.labels import (
    UNKNOWN,
    baselines,
    beside,
    count_labels,
    describe,
    read_languages,
)

CLASSES = 7


def make_labels(path, count=40, seed=0):
    """Units that favour small numbers; samples and languages by utterance."""
    rng = random.Random(seed)
    lengths, languages, units = {}, {}, {}
    for number in range(count):
        utt = f"utt{number:03d}"
        lengths[utt] = rng.randrange(400, 6000)
        languages[utt] = rng.choice(["cmn", "eng", "yue"])
        frames = (lengths[utt] - 400) // 320 + 1
        units[utt] = [
            min(rng.randrange(9), rng.randrange(9)) % 6 for _ in range(frames)
        ]
    names = sorted(units)
    rng.shuffle(names)
    lines = [f"{utt} {' '.join(map(str, units[utt]))}\n" for utt in names]
    path.write_text("".join(lines))
    return lengths, languages, units


def test_units_are_counted_per_language(tmp_path):
    lengths, languages, units = make_labels(tmp_path / "text.km")
    found = count_labels(tmp_path / "text.km", CLASSES, lengths, languages)
    for language in ("cmn", "eng", "yue"):
        expected = Counter(
            unit for utt in units if languages[utt] == language for unit in units[utt]
        )
        assert found[language].tolist() == [expected[k] for k in range(CLASSES)]
    (total,) = count_labels(tmp_path / "text.km", CLASSES, lengths).values()
    assert total.tolist() == sum(found.values()).tolist()


def test_only_utterances_with_a_length_count(tmp_path):
    lengths, _, units = make_labels(tmp_path / "text.km")
    some = dict(list(lengths.items())[::3])
    found = count_labels(tmp_path / "text.km", CLASSES, some)[UNKNOWN]
    expected = Counter(unit for utt in some for unit in units[utt])
    assert found.tolist() == [expected[k] for k in range(CLASSES)]


def test_other_spacing_and_empty_lines_are_read_as_espnet_reads_them(tmp_path):
    (tmp_path / "text").write_text("a\t1  2 \t 0\n\nb 3\n")
    lengths = {"a": 400 + 2 * 320, "b": 719}
    found = count_labels(tmp_path / "text", CLASSES, lengths)[UNKNOWN]
    assert found.tolist() == [1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "utt005 1 2",
            r"utterance utt005: found 2 units for \d+ samples, expected \d+",
        ),
        # As many spaces as there should be, and one unit less.
        ("utt005 SPACED", "utterance utt005: found .* units for"),
        ("utt005 ONE_UNIT=7", "utterance utt005: found unit '7', expected 0 to 6"),
        ("utt005 ONE_UNIT=-1", "utterance utt005: found unit '-1', expected 0 to 6"),
        ("utt005 ONE_UNIT=x", "utterance utt005: found unit 'x', expected 0 to 6"),
        ("utt005 ONE_UNIT=1.5", "utterance utt005: found unit '1.5', expected 0 to 6"),
        ("utt005", "utterance utt005: found 0 units"),
        ("", "utterance utt005: no units; 1 of 40 utterances have none"),
    ],
)
def test_what_does_not_fit_is_named_with_its_utterance(tmp_path, line, message):
    path = tmp_path / "text.km"
    lengths, _, units = make_labels(path)
    lengths["utt005"] = 400 + 7 * 320
    units["utt005"] = [1] * 8
    if "ONE_UNIT" in line:
        units["utt005"][3] = line.split("=")[1]
        line = "utt005 " + " ".join(map(str, units["utt005"]))
    elif "SPACED" in line:
        line = "utt005 " + " ".join(["1"] * 6) + "  1"
    lines = [x for x in path.read_text().splitlines() if not x.startswith("utt005")]
    path.write_text("\n".join([*lines[:9], *([line] if line else []), *lines[9:]]))
    with pytest.raises(RecipeError, match=f"{path}: {message}"):
        count_labels(path, CLASSES, lengths)


@pytest.mark.parametrize("seed", range(3))
def test_entropy_and_majority_follow_their_formulas(seed):
    counts = np.random.default_rng(seed).integers(0, 50, size=11) * [*[1] * 9, 0, 0]
    shares = [int(c) / int(counts.sum()) for c in counts if c]
    found = describe(counts)
    nats = -sum(p * math.log(p) for p in shares)
    assert found["entropy_nats"] == pytest.approx(nats)
    assert found["entropy_bits"] == pytest.approx(nats / math.log(2))
    assert found["uniform_bits"] == pytest.approx(math.log2(11))
    assert found["uniform_nats"] == pytest.approx(math.log(11))
    assert found["majority_accuracy"] == pytest.approx(max(shares))
    assert counts[found["majority_class"]] == counts.max()
    assert (found["used"], found["dead"]) == (len(shares), 11 - len(shares))


def test_baselines_are_losses_and_accuracies_of_constant_predictions(tmp_path):
    """What a model with fixed logits would score, by its own loss and accuracy."""
    import torch
    from torch.nn import functional as F

    lengths, languages, units = make_labels(tmp_path / "text.km")
    found = baselines(count_labels(tmp_path / "text.km", CLASSES, lengths, languages))
    for language in (None, "cmn", "eng", "yue"):
        labels = torch.tensor(
            [u for n in units if language in (None, languages[n]) for u in units[n]]
        )
        counts = labels.bincount(minlength=CLASSES)
        logits = counts.float().log().expand(len(labels), CLASSES)
        bits = F.cross_entropy(logits, labels).item() / math.log(2)
        right = (logits.argmax(-1) == labels).float().mean().item()
        if language is None:
            assert found["loss_m_bits"]["unigram_bits"] == pytest.approx(bits, rel=1e-5)
            assert found["acc_m"]["majority_acc"] == pytest.approx(right, rel=1e-5)
            continue
        name = f"unigram_bits_{language}"
        assert found[f"bits_m_{language}"][name] == pytest.approx(bits, rel=1e-5)
        name = f"majority_acc_{language}"
        assert found[f"acc_m_{language}"][name] == pytest.approx(right, rel=1e-5)


def test_baselines_stand_right_behind_what_they_belong_to():
    counts = {"cmn": np.array([3, 1]), "yue": np.array([1, 1])}
    figures = {"loss_m_bits": 1.0, "acc_m": 0.5, "loss": 1.0, "acc_m_cmn": 0.2}
    found = beside(figures, baselines(counts))
    assert list(found) == [
        "loss_m_bits",
        "uniform_bits",
        "unigram_bits",
        "acc_m",
        "uniform_acc",
        "majority_acc",
        # No Cantonese was seen in this epoch.
        "loss",
        "acc_m_cmn",
        "majority_acc_cmn",
    ]
    assert found["uniform_acc"] == 1 / 2
    assert found["majority_acc"] == 4 / 6 and found["majority_acc_cmn"] == 3 / 4


def test_languages_are_read_by_their_position(tmp_path):
    path = tmp_path / "utt2langid"
    path.write_text("a 1\nb 0\nc 1\n")
    found = read_languages(path, ["cmn", "yue"], {"a": 1, "b": 1})
    assert [found.names[code] for code in found.codes] == ["yue", "cmn"]
    for langs, utterances in ((["cmn"], "a"), (["cmn", "yue"], "z")):
        with pytest.raises(RecipeError, match=f"utterance {utterances}: found langu"):
            read_languages(path, langs, {utterances: 1})
