"""The six figures of ML-SUPERB 2.0's challenge equal its script's definition."""

import dataclasses
import random
import re
import statistics
import unicodedata
from types import SimpleNamespace

import pytest

from espnet2_lamer.evaluation.challenge import (
    challenge_figures,
    challenge_rates,
    challenge_table,
)
from espnet2_lamer.evaluation.results import collect_figures
from espnet2_lamer.evaluation.runs import Run
from espnet2_lamer.fileio.datadir import read_table, write_table

UNSPACED = ("[cmn]", "[jpn]", "[tha]", "[yue]")


def script(references, lids, hypotheses):
    """What score.py computes of lines, written from its description; in per cent."""
    import jiwer

    def clean(text, lang):
        text = re.sub(r"\s", "", text) if lang in UNSPACED else text
        return "".join(c for c in text if unicodedata.category(c)[0] != "P").upper()

    cers, accuracies = {}, {}
    for lang in set(lids):
        rows = [
            (clean(ref[5:].strip(), lang), clean(hyp[5:].strip(), lang), hyp[:5])
            for ref, lid, hyp in zip(references, lids, hypotheses, strict=True)
            if lid == lang
        ]
        rows = [row for row in rows if row[0]]
        cers[lang] = statistics.fmean(jiwer.cer(ref, hyp) for ref, hyp, _ in rows)
        accuracies[lang] = statistics.fmean(tag == lang for *_, tag in rows)
    ordered = sorted(cers.values(), reverse=True)
    return {
        "Standard CER": 100 * statistics.fmean(ordered),
        "Standard LID": 100 * statistics.fmean(accuracies.values()),
        "Worst 15 CER": 100 * sum(ordered[:15]) / 15,
        "CER StD": 100 * statistics.stdev(ordered),
    }


def write_lines(folder, langs, seed=5):
    draw = random.Random(seed)
    refs, hyps, utt2lang = {}, {}, {}
    for lang in langs:
        for number in range(draw.randint(2, 6)):
            utt = f"{lang}_{number}"
            text = " ".join(
                "".join(draw.choices("abÉ'好。,", k=3)) + "x" for _ in range(3)
            )
            found = "".join(c for c in text if draw.random() > 0.3)
            tag = draw.choice([f"[{lang}]", f"[{lang}]", "[eng]", "ab cd", ""])
            refs[utt] = f"[{lang}] {text}"
            hyps[utt] = f"{tag} {found}".strip() or "z"
            utt2lang[utt] = lang
    # Nothing but punctuation: skipped by both.
    refs[f"{langs[0]}_p"], hyps[f"{langs[0]}_p"] = f"[{langs[0]}] ...", "[eng] a"
    utt2lang[f"{langs[0]}_p"] = langs[0]
    for name, table in (("ref", refs), ("hyp", hyps), ("utt2lang", utt2lang)):
        write_table(folder / name, table)
    return folder / "ref", folder / "hyp", utt2lang


def as_lines(ref, hyp, utt2lang):
    refs, hyps = read_table(ref), read_table(hyp)
    return (
        [refs[u] for u in refs],
        [f"[{utt2lang[u]}]" for u in refs],
        [hyps[u] for u in refs],
    )


def test_all_figures_are_those_of_the_script(tmp_path):
    langs = [f"l{chr(97 + i // 6)}{chr(97 + i % 6)}" for i in range(18)]
    ref, hyp, utt2lang = write_lines(tmp_path, [*langs, "cmn", "tha", "eng"])
    found = challenge_figures(*challenge_rates(ref, hyp, utt2lang))
    expected = script(*as_lines(ref, hyp, utt2lang))
    assert {n: m.value for n, m in found.items()} == pytest.approx(expected)
    assert 0 < expected["Standard LID"] < 100
    low, high = found["Standard CER"].interval
    assert low < expected["Standard CER"] < high
    dialects = challenge_figures(*challenge_rates(ref, hyp, utt2lang), dialects=True)
    assert {n: m.value for n, m in dialects.items()} == pytest.approx(
        {
            "Dialect CER": expected["Standard CER"],
            "Dialect LID": expected["Standard LID"],
        }
    )


def test_few_languages_are_all_the_worst_and_it_is_said(tmp_path):
    ref, hyp, utt2lang = write_lines(tmp_path, ["eng", "cmn", "deu"])
    found = challenge_figures(*challenge_rates(ref, hyp, utt2lang))
    assert found["Worst 15 CER"].value == pytest.approx(found["Standard CER"].value)
    assert found["Worst 15 CER"].note == "all 3"
    alone = challenge_figures({"eng": {"u": 0.5}}, {"eng": {"u": 1.0}})
    assert "CER StD" not in alone


def test_an_empty_hypothesis_is_wrong_instead_of_an_end(tmp_path):
    write_table(tmp_path / "ref", {"a": "[eng] AB"})
    write_table(tmp_path / "hyp", {"a": ""})
    rates = challenge_rates(tmp_path / "ref", tmp_path / "hyp", {"a": "eng"})
    assert rates == ({"eng": {"a": 1.0}}, {"eng": {"a": 0.0}})


def make_test(tmp_path, label, system, benchmark="mlsuperb2"):
    values = {field.name: "" for field in dataclasses.fields(Run)}
    values |= {"track": "asr_lid", "benchmark": benchmark, "layer": "all"}
    values |= {"system": system, "langs": ("eng", "cmn"), "train_sets": ()}
    values |= {"config": "conf/train_asr_mlsuperb2_transformer.yaml", "seed": 0}
    values |= {"tests": {}, "dev_sets": (), "learning_rate": None}
    run = Run(**values)
    here = run.directory(tmp_path) / f"decode_{label}"
    ref, hyp, utt2lang = write_lines(tmp_path / f"{system}_{label}", ["eng", "cmn"])
    for path, place in ((ref, "ref"), (hyp, "free/1best_recog")):
        (here / place).mkdir(parents=True)
        (here / place / "text").write_text(path.read_text())
    return SimpleNamespace(run=run, task=SimpleNamespace(test=label), utt2lang=utt2lang)


def test_the_table_has_a_row_per_set_and_figure_and_compares_systems(tmp_path):
    tests = [
        make_test(tmp_path, label, system)
        for label in ("dev", "dev_dialect")
        for system in ("base", "lamer")
    ]
    other = make_test(tmp_path, "test", "base", benchmark="mlsuperb")
    table = challenge_table([*tests, other], tmp_path, ["base"])
    assert sorted(table.rows) == sorted(
        [
            "dev: Standard CER",
            "dev: Standard LID",
            "dev: Worst 15 CER",
            "dev: CER StD",
            "dev_dialect: Dialect CER",
            "dev_dialect: Dialect LID",
        ]
    )
    assert table.note.startswith("Head: transformer.")
    assert all([*row] == ["base", "lamer"] for row in table.rows.values())
    from espnet2_lamer.evaluation.results import Results

    systems = {"base": "the base", "lamer": "ours"}
    figures = collect_figures(Results(systems=systems, tables=[table]))
    (cer,) = (
        f for f in figures if (f.label, f.system) == ("dev: Standard CER", "lamer")
    )
    assert cer.comparisons[0].value == pytest.approx(0)
    assert challenge_table([other], tmp_path) is None
