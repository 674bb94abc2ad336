"""Label quality against plain formulas over random labels."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.units.quality import label_quality, write_quality

K = 6
PHONES = ("a", "b", "sil")


@pytest.fixture
def data(tmp_path):
    """Random units and phones of 5 utterances, on disk and as plain lists."""
    rng = np.random.default_rng(0)
    units, phones, langs, ctm = {}, {}, {}, []
    for number in range(5):
        utt, frames = f"utt{number}", int(rng.integers(30, 60))
        phones[utt] = []
        while len(phones[utt]) < frames:
            phone, length = PHONES[rng.integers(3)], int(rng.integers(1, 8))
            start = len(phones[utt])
            phones[utt] += [phone] * length
            if phone != "sil":  # silence is what no line covers
                # Between the centre of the first frame and that of the next phone's.
                begin = (start * 320 + 200) / 16000 - 0.005
                ctm.append(f"{utt} 1 {begin:.4f} {length * 0.02:.4f} {phone}\n")
        phones[utt] = phones[utt][:frames]
        noise = rng.integers(K, size=frames)
        units[utt] = [
            int(n) if rng.random() < 0.5 else 2 * PHONES.index(p)
            for n, p in zip(noise, phones[utt], strict=True)
        ]
        langs[utt] = "eng" if number % 2 else "cmn"
    write_table(
        tmp_path / "text.km", {u: " ".join(map(str, v)) for u, v in units.items()}
    )
    write_table(tmp_path / "utt2lang", langs)
    (tmp_path / "phones.ctm").write_text("".join(ctm))
    return tmp_path, units, phones, langs


def entropy(values):
    counts = Counter(values)
    total = sum(counts.values())
    return -sum(c / total * math.log(c / total) for c in counts.values())


def purity(pairs):
    """Share of pairs whose second value is the likeliest of their first."""
    by_first = {}
    for first, second in pairs:
        by_first.setdefault(first, Counter())[second] += 1
    best = sum(max(counter.values()) for counter in by_first.values())
    return best / len(pairs)


def test_use_and_predictability_follow_their_formulas(data):
    root, units, _, _ = data
    report = label_quality(root / "text.km", K + 2)
    flat = sum(units.values(), [])
    pairs = [p for u in units.values() for p in zip(u[:-1], u[1:], strict=True)]
    runs = sum(
        1 + sum(a != b for a, b in zip(u[:-1], u[1:], strict=True))
        for u in units.values()
    )
    conditional = entropy(pairs) - entropy([first for first, _ in pairs])
    assert report["frames"] == len(flat)
    assert (report["used"], report["dead"]) == (len(set(flat)), K + 2 - len(set(flat)))
    assert report["entropy"] == pytest.approx(entropy(flat))
    assert report["perplexity"] == pytest.approx(math.exp(entropy(flat)))
    assert report["bigram_perplexity"] == pytest.approx(math.exp(conditional))
    assert report["run_length"] == pytest.approx(len(flat) / runs)


def test_pnmi_and_purities_follow_their_formulas(data):
    root, units, phones, _ = data
    report = label_quality(root / "text.km", K, phones_ctm=root / "phones.ctm")
    joint = [
        pair for utt in units for pair in zip(phones[utt], units[utt], strict=True)
    ]
    reverse = [(unit, phone) for phone, unit in joint]
    phone_entropy = entropy([phone for phone, _ in joint])
    unit_entropy = entropy([unit for _, unit in joint])
    information = phone_entropy + unit_entropy - entropy(joint)
    assert report["pnmi"] == pytest.approx(information / phone_entropy)
    assert report["phone_purity"] == pytest.approx(purity(reverse))
    assert report["cluster_purity"] == pytest.approx(purity(joint))


def test_units_that_are_phones_have_pnmi_and_purities_of_one(tmp_path):
    (tmp_path / "text.km").write_text("u 0 0 1 1 1\n")
    (tmp_path / "phones.ctm").write_text("u 1 0.0 0.045 a\nu 1 0.045 1.0 b\n")
    report = label_quality(tmp_path / "text.km", 2, tmp_path / "phones.ctm")
    assert report["pnmi"] == pytest.approx(1)
    assert report["phone_purity"] == report["cluster_purity"] == 1


def test_frames_are_placed_at_their_centres(tmp_path):
    # Frame 2 is centred at (640 + 200) / 16000 = 0.0525 s: the border is just after.
    (tmp_path / "text.km").write_text("u 0 0 0 1\n")
    (tmp_path / "phones.ctm").write_text("u 1 0.0 0.0526 a\nu 1 0.0526 1.0 b\n")
    report = label_quality(tmp_path / "text.km", 2, tmp_path / "phones.ctm")
    assert report["pnmi"] == pytest.approx(1)


def test_language_purity_follows_its_formula(data):
    root, units, _, langs = data
    report = label_quality(root / "text.km", K, utt2lang=root / "utt2lang")
    pairs = [(unit, langs[utt]) for utt in units for unit in units[utt]]
    majority = Counter(lang for _, lang in pairs).most_common(1)[0][1] / len(pairs)
    assert report["language_purity"] == pytest.approx(purity(pairs))
    assert report["language_majority"] == pytest.approx(majority)


def test_phones_of_other_utterances_are_refused(data):
    root, *_ = data
    (root / "phones.ctm").write_text("other 1 0.0 1.0 a\n")
    with pytest.raises(RecipeError, match="no utterance of"):
        label_quality(root / "text.km", K, phones_ctm=root / "phones.ctm")


def test_a_malformed_ctm_line_is_named(data):
    root, *_ = data
    (root / "phones.ctm").write_text("utt0 1 0.0 1.0 a\nutt0 1 zero 1.0 a\n")
    with pytest.raises(RecipeError, match="phones.ctm:2"):
        label_quality(root / "text.km", K, phones_ctm=root / "phones.ctm")


def test_report_is_written_as_json_and_table(data, tmp_path):
    root, *_ = data
    report = label_quality(root / "text.km", K)
    write_quality(report, tmp_path / "quality.json")
    assert json.loads((tmp_path / "quality.json").read_text()) == report
    assert f"| K | {K} |" in (tmp_path / "quality.md").read_text()
