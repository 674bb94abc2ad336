"""Every benchmark at toy size: its rows, its checks, and how results are kept."""

import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import (
    harness,
    heads,
    layer,
    loss,
    memory,
    overhead,
    padding,
    report,
    step,
    stock,
)
from benchmarks.__main__ import SECTIONS, _plan, main
from benchmarks.experts import PEERS, DenseLoop
from benchmarks.stock_setup import (
    OURS,
    RATE,
    STOCK,
    config,
    our_bins,
    stock_batches,
    trained_audio,
    write_corpus,
)
from espnet2_lamer.constants import num_frames
from espnet2_lamer.errors import RecipeError

TOY = ["--quick", "--device", "cpu", "--threads", "1"]
TOY += ["--layer_experts", "4", "--layer_dtypes", "fp32"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """RESULTS.md of one quick run of everything."""
    path = tmp_path_factory.mktemp("benchmarks") / "RESULTS.md"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        # --threads sets it; here it is put back.
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            main([*TOY, "--output", str(path)])
        finally:
            torch.set_num_threads(threads)
    return path.read_text(encoding="utf-8")


def rows(results, section):
    """Return the tables' rows of a section, as dictionaries."""
    text = re.search(rf"^## {section}: .*?(?=^## |\Z)", results, re.M | re.S).group()
    found, header = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
        elif set(cells) != {"---"}:
            found.append(dict(zip(header, cells, strict=True)))
    return found


def numbers(text):
    """Return every number of a cell."""
    return [float(number) for number in re.findall(r"\d+\.?\d*(?:e-?\d+)?", text)]


@pytest.mark.slow
def test_every_section_says_how_and_where_it_was_measured(results):
    # Without peft, which no test needs, there are no peers.
    without = set() if find_spec("peft") else {"peers"}
    expected = [name for name in SECTIONS if name not in without]
    assert re.findall(r"^## (\w+): ", results, re.M) == expected
    for fact in ("command", "measured on", "machine", "software", "date"):
        assert len(re.findall(rf"^- {fact}: \S", results, re.M)) == len(expected), fact
    command = "python -m benchmarks " + " ".join(TOY)
    assert results.count(f"- command: `{command}`") == len(expected)


@pytest.mark.slow
def test_the_layer_table_has_every_form_in_every_setting(results):
    found = rows(results, "layer")
    forms = [layer.FROZEN, layer.LORA, *PEERS, layer.OURS]
    settings = ["N = 4, top-2", "N = 4, soft"]
    expected = [(s, f) for _ in ("linear", "ffn") for s in settings for f in forms]
    assert [(row["setting"], row["form"]) for row in found] == expected
    for row in found:
        ratios = numbers(row["time / one LoRA"])
        assert len(ratios) == 4 and min(ratios) > 0
        assert bool(row["target"].endswith(("met", "missed"))) == (
            row["form"] in (*PEERS, layer.OURS)
        )


@pytest.mark.slow
def test_the_step_table_compares_with_hubert_lora(results):
    found = rows(results, "step")
    assert [row["model"] for row in found] == list(step.variants(2))
    reference, lamer = found[:2]
    assert numbers(reference["time / HuBERT-LoRA, rank 4"]) == [1, 1, 1, 1]
    assert re.search(r"<= 1.1: (met|missed)$", lamer["target"])
    # 5 experts a layer on average, each half of HuBERT-LoRA's rank; heads are equal.
    assert all(float(row["audio s per s"]) > 0 for row in found)


@pytest.mark.slow
def test_the_sharing_table_compares_a_job_alone_with_one_beside_another(results):
    ours, theirs = rows(results, "sharing")
    assert ours["alone / ours"] == "1.00 [1.00, 1.00], min 1.00"
    assert ours["target"].endswith(("met", "missed")) and not theirs["target"]
    for row in (ours, theirs):
        ratio = numbers(row["beside / alone"])[0]
        alone, beside = float(row["alone"]), float(row["beside"])
        assert ratio == pytest.approx(beside / alone, rel=0.2)


@pytest.mark.slow
def test_the_loss_table_has_both_losses(results):
    ours, theirs = rows(results, "loss")
    assert (ours["form"], theirs["form"]) == (loss.OURS, loss.TORCHAUDIO)
    assert float(theirs["peak MB allocated"]) > float(ours["peak MB allocated"]) > 0
    assert min(numbers(theirs["time / ours"])) > 0


@pytest.mark.slow
def test_the_stock_table_compares_the_same_model(results):
    found = rows(results, "stock")
    assert [row["form"] for row in found] == [STOCK, *OURS]
    stock_row, ours = found[:2]
    assert stock_row["parameters"] == ours["parameters"]
    assert stock_row["updates"] == ours["updates"]
    assert min(float(row["speed-up over stock"]) for row in found) > 0


@pytest.mark.slow
def test_the_overhead_table_adds_up(results):
    found = rows(results, "overhead")
    names = [row["part"] for row in found]
    assert names[-2:] == ["step checkpoint", "all"] and len(names) == 5
    for column in ("ms per update", "% of an update"):
        *parts, whole = (float(row[column]) for row in found)
        # Rounded to two digits, three of a per cent.
        assert sum(parts) == pytest.approx(whole, abs=0.05) and min(parts) >= 0
    assert re.search(r"<= 2: (met|missed)$", found[-1]["target"])


@pytest.mark.slow
def test_the_padding_table_has_stock_batching_and_ours(results):
    found = {row["batching"]: row for row in rows(results, "padding")}
    assert len(found) == 8
    (ours,) = (name for name in found if name.startswith("ours: "))
    lost = {name: float(row["audio lost (%)"]) for name, row in found.items()}
    padded = {n: float(r["padding (% of what is computed)"]) for n, r in found.items()}
    for kind in ("numel", "catpow"):
        cut, whole = f"stock `{kind}`, cut to the shortest", f"stock `{kind}`, padded"
        assert lost[cut] > 0 == padded[cut] and padded[whole] > 0 == lost[whole]
    # Mixed lengths cost more than sorted ones.
    assert lost["stock `catpow`, cut to the shortest"] > 2 * max(
        lost["stock `numel`, cut to the shortest"], lost[ours]
    )
    assert padded[ours] < padded["ours, buckets of 1 s"]
    assert padded["ours, buckets of 1 s"] < padded["stock `catpow`, padded"]


@pytest.mark.parametrize("ffn", [False, True])
@pytest.mark.parametrize("setting", layer.settings((2, 3, 8)), ids=str)
def test_every_form_gives_our_values_and_gradients(setting, ffn):
    options = layer.Options(tokens=9, dim=12, inner=20, rank=3)
    forms = layer.build_forms(setting, options, ffn)
    assert layer.check_forms(forms, torch.randn(9, 12)) <= 1e-5


def test_a_form_that_computes_something_else_is_refused(monkeypatch):
    class Wrong(DenseLoop):
        def forward(self, x, gates):
            return super().forward(x, gates * 1.001)

    monkeypatch.setitem(layer.PEERS, "dense loop (LoRAMoE)", Wrong)
    options = layer.Options(tokens=9, dim=12, inner=20, rank=3)
    forms = layer.build_forms(layer.Setting(4, 2), options, False)
    with pytest.raises(RuntimeError, match="dense loop .* differs from ours by"):
        layer.check_forms(forms, torch.randn(9, 12))


def test_both_losses_agree_in_value_and_gradient():
    options = loss.Options(units=7, hidden=10, dim=6)
    assert loss.disagreement(loss.Losses(12, options)) <= 1e-5


def test_variants_share_the_backbone_and_train_what_papers_train():
    backbone = step.build_backbone(step.QUICK)
    frozen = {id(p) for p in backbone.parameters() if not p.requires_grad}
    trained = []
    for name, lamer in step.variants(2).items():
        model = step.with_experts(backbone, lamer)
        own = [p for p in model.parameters() if id(p) not in frozen]
        assert all(p.requires_grad for p in own), name
        assert len(own) < len(list(model.parameters())), name
        lora = [p for n, p in model.named_parameters() if "lora_" in n]
        trained.append(sum(p.numel() for p in lora))
    # Rank 4 against experts of rank 2: 4 layers x (1 x 4) against 20 experts x 2.
    assert trained == [trained[0], *[trained[0] * 40 // 16] * 3]


def test_saved_bytes_counts_storages_once_and_no_inputs():
    x = torch.randn(3, 4, requires_grad=True)
    w = nn.Parameter(torch.randn(4, 5))
    # x @ w keeps x and w; exp keeps its result (15 floats), here also used by a view.
    kept = memory.saved_bytes(lambda: (x @ w).exp().t().sin(), [x, w])
    assert kept == 15 * 4
    assert memory.saved_bytes(lambda: x @ w, []) == (12 + 20) * 4


def test_peak_allocated_sees_temporaries_that_are_freed():
    def run():
        big = torch.empty(1000, 1000)
        del big
        return torch.empty(500, 1000)

    peak = memory.peak_allocated(run)
    assert 4_000_000 <= peak < 4_100_000


def test_resident_size_is_measured_in_a_new_process():
    assert memory.call(len, "abc") == 3
    memory.reset_peak_resident()
    assert memory.peak_resident() >= memory.resident() * 0.9 > 0


def test_ratios_are_taken_within_a_round():
    timings = harness.Timings({"a": [1.0, 10.0, 4.0], "b": [2.0, 30.0, 4.0]})
    ratio = timings.ratio("b", "a")
    assert (ratio.median, ratio.of_minima) == (2.0, 2.0)
    assert (ratio.low, ratio.high) == (1.5, 2.5)
    assert str(timings.ratio("a", "a")) == "1.00 [1.00, 1.00], min 1.00"


def test_cases_take_turns_and_preparation_is_not_timed():
    calls = []
    cases = {
        name: harness.Case(
            lambda name=name: calls.append(name), lambda name=name: calls.append("prep")
        )
        for name in "abc"
    }
    timings = harness.interleave(cases, rounds=4, warmup=1)
    ran = [calls[i : i + 6] for i in range(0, 30, 6)]
    assert all(sorted(r[1::2]) == list("abc") and set(r[::2]) == {"prep"} for r in ran)
    assert len({tuple(r) for r in ran}) > 1
    assert {len(seconds) for seconds in timings.seconds.values()} == {4}


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    path = tmp_path / "RESULTS.md"
    table = report.Table("t", ["x", "y"], [["1", "2"]])
    for name, text in (("layer", "old"), ("k-means", "kept"), ("layer", "new")):
        report.update(path, report.Section(name, "title", {"date": text}, [table]))
    content = path.read_text(encoding="utf-8")
    assert "old" not in content and content.startswith(report.INTRODUCTION.strip())
    assert re.findall(r"^## (\S+): title\n\n- date: (\w+)", content, re.M) == [
        ("layer", "new"),
        ("k-means", "kept"),
    ]
    assert content.count("| x | y |\n| --- | --- |\n| 1 | 2 |") == 2


def test_targets_are_computed_and_not_asserted():
    assert report.verdict(1.15, "<=", 1.15) == "<= 1.15: met"
    assert report.verdict(1.16, "<=", 1.15) == "<= 1.15: missed"
    assert report.verdict(1.0, ">", 1) == "> 1: missed"


def test_stock_training_is_charged_for_the_audio_that_it_cuts(tmp_path):
    options = stock.QUICK
    corpus = write_corpus(tmp_path, options)
    lengths = corpus.lengths
    batches = stock_batches(corpus, int(options.bins * RATE))
    assert sorted(name for batch in batches for name in batch) == sorted(lengths)
    cut = sum(
        lengths[name] - min(lengths[other] for other in batch)
        for batch in batches
        for name in batch
    )
    assert cut > 0
    whole = sum(lengths.values())
    assert trained_audio(STOCK, corpus, options) == pytest.approx((whole - cut) / RATE)
    ours = next(iter(OURS))
    assert trained_audio(ours, corpus, options) == pytest.approx(whole / RATE)
    assert our_bins(corpus, int(options.bins * RATE)) >= options.bins * RATE
    one, other = (config(form, "tiny", corpus, options) for form in (STOCK, ours))
    assert one["optim_conf"] == other["optim_conf"]


def test_padding_is_counted_as_the_collate_functions_make_it():
    from espnet2.train.collate_fn import HuBERTCollateFn

    from espnet2_lamer.train.batching import LamerCollate, make_batches

    lengths = padding.make_lengths(padding.Options(utterances=25, longest=8.0))

    def utterances(batch):
        return [
            (
                u,
                {
                    "speech": np.zeros(n, np.float32),
                    "text": np.zeros(num_frames(n), int),
                },
            )
            for u, n in ((u, lengths[u]) for u in batch)
        ]

    for kind in ("numel", "catpow"):
        batches = padding.stock_batches(lengths, 30 * RATE, kind)
        for pad in (False, True):
            collate = HuBERTCollateFn(pad=pad, crop_audio=not pad, int_pad_value=-1)
            made = [collate(utterances(batch))[1] for batch in batches]
            found = padding.measure_stock(lengths, batches, pad)
            assert found.computed == sum(b["speech"].numel() for b in made)
            assert found.used == sum(b["speech_lengths"].sum() for b in made)
            assert found.shapes == len({b["speech"].shape for b in made})
    crop, bucket = 60000, 16000
    rng = np.random.default_rng(0)
    collate = LamerCollate(crop, bucket, 0.8, 10, 0, 1, True)
    made = [
        collate(utterances(batch))[1]
        for batch in make_batches(lengths, 30 * RATE, crop, bucket, rng, True)
    ]
    found = padding.measure_ours(lengths, 30 * RATE, crop, bucket)
    assert found.computed == sum(b["speech"].numel() for b in made)
    assert found.used == sum(b["speech_lengths"].sum() for b in made)
    assert (found.batches, found.given) == (len(made), sum(lengths.values()))


def test_lengths_of_a_list_are_read(tmp_path):
    path = tmp_path / "utt2num_samples"
    path.write_text("eng_1 16000\ncmn_2 32000\n")
    options = padding.Options(list=str(path))
    assert padding.make_lengths(options) == {"eng_1": 16000, "cmn_2": 32000}


def test_the_checkpoint_of_the_overhead_has_no_backbone(tmp_path):
    model = overhead.build_model(overhead.QUICK, "cpu")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    others = set(model.state_dict()) - trained
    assert {name.rpartition(".")[2] for name in others} == {
        *("base_sha256", "training_batches"),
        # The guard of the missing backbone, empty.
        "weight",
    }


def test_update_times_come_from_espnets_log_without_the_first_epoch():
    log = """\
x (trainer:1) INFO: 1epoch:train:1-1batch: iter_time=0.1, train_time=9.000
x (trainer:1) INFO: 2epoch:train:1-1batch: iter_time=0.1, train_time=0.250
x (trainer:1) INFO: 2epoch:train:2-2batch: iter_time=0.1, train_time=5.000e-04
"""
    assert stock.update_seconds(log) == [0.25, 5e-4]
    with pytest.raises(RuntimeError, match="no update after the first epoch"):
        stock.update_seconds(log.splitlines()[0])


def test_unknown_sections_are_refused_and_options_are_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--only", "layer,gone"])
    assert ended.value.code == 2
    assert "unknown sections ['gone']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("--layer_tokens", "--step_dtype", "--loss_frames", "6 % shorter"):
        assert name in text


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (["--device", "cuda"], "--device cuda: torch finds no GPU"),
        (["--device", "cuda", "--only", "padding"], "torch finds no GPU"),
    ],
)
def test_a_device_that_is_not_there_is_refused(request_, message, tmp_path):
    output = tmp_path / "RESULTS.md"
    with pytest.raises(RecipeError, match=message):
        main([*request_, "--quick", "--output", str(output)])
    assert not output.exists()


def test_a_request_that_would_measure_nothing_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match="nothing would be measured: padding, loss"):
        _plan(["padding", "loss"], "cuda")
    assert _plan(["padding", "layer"], "cuda") == [("layer", "cuda")]
    assert "--device cuda leaves out padding" in caplog.text
    both = [("layer", "cpu"), ("layer", "cuda"), ("padding", "cpu")]
    assert _plan(["layer", "padding"], "all") == both


@pytest.mark.slow
def test_the_heads_table_compares_stored_features_with_both_upstreams(results):
    found = rows(results, "heads")
    assert [row["form"] for row in found] == [heads.STOCK, heads.LIVE, heads.STORED]
    seconds = [numbers(row["s per iteration"])[0] for row in found]
    assert min(seconds) > 0
    for column, reference in (("stock", 0), ("upstream in the loop", 1)):
        cell = found[2][f"speed-up over {column}"]
        ratio = seconds[reference] / seconds[2]
        assert numbers(cell)[0] == pytest.approx(ratio, rel=0.05, abs=0.06)
        assert re.search(r"\(>= 10: (met|missed)\)$", cell)
