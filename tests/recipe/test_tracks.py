"""Every track through stages 9-11, decoding and packing, with an upstream by path."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.evaluation.head_decoding import decode_run
from espnet2_lamer.evaluation.runs import RECORD, Run
from espnet2_lamer.fileio.datadir import read_table, write_table
from tests.tiny_hubert import ARCHITECTURE

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"
WORDS = {"eng": "GOOD DAY TO YOU ALL".split(), "yue": list("你好早晨呀")}
GREEDY = {"beam_size": 1, "ctc_weight": 1.0, "lm_weight": 0.0}
# Five ESPnet trainings: a minute on one core.
pytestmark = pytest.mark.slow


def write_data(root):
    """``data/<split>_<lang>``: noise of 1-2 s, transcripts of a few words."""
    draw = np.random.default_rng(0)
    for lang, words in WORDS.items():
        for split, count in (("train", 8), ("dev", 2), ("test", 2)):
            directory = root / "data" / f"{split}_{lang}"
            wavs, texts = {}, {}
            for number in range(count):
                utt = f"{lang}_{split}_{number}"
                path = root / "audio" / f"{utt}.flac"
                path.parent.mkdir(exist_ok=True)
                noise = draw.standard_normal(16000 + 2000 * number)
                soundfile.write(path, 0.1 * noise, 16000)
                chosen = draw.choice(words, size=4)
                wavs[utt] = str(path)
                texts[utt] = (" " if lang == "eng" else "").join(chosen)
            write_table(directory / "wav.scp", wavs)
            write_table(directory / "text", texts)
            write_table(directory / "utt2lang", dict.fromkeys(wavs, lang))
            write_table(directory / "utt2spk", {utt: utt for utt in wavs})


def write_upstream(directory):
    torch.manual_seed(0)
    model = build_hubert(ARCHITECTURE)
    save_huggingface(model, directory)
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Stages 9 to 11 of every track; the mixed ones with SentencePiece units."""
    from espnet2_lamer.recipe import data, scoring
    from espnet2_lamer.recipe.benchmark import planned_runs
    from tests.recipe.evaluation_options import options_of

    root = tmp_path_factory.mktemp("tracks")
    write_data(root)
    source = RECIPE / "conf/tuning/train_asr_mlsuperb_mini.yaml"
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    config |= {"max_epoch": 1, "num_iters_per_epoch": 2}
    config["scheduler_conf"]["total_steps"] = 2
    head = root / "head.yaml"
    head.write_text(yaml.safe_dump(config))
    options = options_of(
        root,
        datadir=root / "data",
        new_langs=["yue"],
        units={"eng": "bpe", "yue": "jyutping"},
        benchmark="own",
        budgets=["all"],
        tracks=["asr", "multi_asr", "lid", "asr_lid"],
        multi_unit="bpe",
        nbpe=24,
        upstreams=[str(write_upstream(root / "tiny"))],
        asr_layer="all",
        lid_layer=1,
        nj=1,
        ngpu=0,
        dask="",
        max_bad_audio=1.0,
        store_dtype="float16",
        **dict.fromkeys(("asr_config", "multi_config", "lid_config"), head),
    )
    data.format_evaluation(options)
    scoring.train_heads(options, options.tracks)
    decoding = root / "decode.yaml"
    decoding.write_text(yaml.safe_dump(GREEDY))
    runs = planned_runs(options)
    found = {
        run.name: decode_run(run, options.expdir, options.raw, decoding) for run in runs
    }
    return root, options, {run.name: run for run in runs}, found


def test_each_track_has_a_directory_with_its_record(finished):
    _, options, runs, _ = finished
    assert sorted(runs) == [
        "asr_eng_bpe_tiny_sum",
        "asr_lid_bpe_tiny_layer1",
        "asr_yue_jyutping_tiny_sum",
        "lid_tiny_layer1",
        "multi_asr_bpe_tiny_sum",
    ]
    for name, run in runs.items():
        assert Run.read(options.expdir / name / RECORD) == run
        assert (options.expdir / name / "final/model.pth").is_file()


def test_references_are_text_tags_or_both(finished):
    _, options, runs, _ = finished
    plain = read_table(options.raw / "asr_eng_test/text.char")
    utt, text = next(iter(plain.items()))
    expected = {
        "asr_eng_bpe_tiny_sum": ("eng", text),
        "multi_asr_bpe_tiny_sum": ("test", text),
        "asr_lid_bpe_tiny_layer1": ("test", f"[eng] {text}"),
        "lid_tiny_layer1": ("test", "[eng]"),
    }
    for name, (label, line) in expected.items():
        reference = options.expdir / name / f"decode_{label}/ref/text"
        assert read_table(reference)[utt] == line, name


def test_hypotheses_are_there_for_every_utterance_and_decision(finished):
    _, options, runs, found = finished
    for name, labels in found.items():
        decisions = {"most_probable_tag", "first_tag"} if "lid_t" in name else {"free"}
        if name.startswith("asr_lid"):
            decisions = {"free"}
        for label, files in labels.items():
            assert set(files) == decisions
            reference = options.expdir / name / f"decode_{label}/ref/text"
            for file in files.values():
                assert read_table(file).keys() == read_table(reference).keys()


def test_pieces_come_from_the_training_text_alone(finished):
    import sentencepiece

    _, options, _, _ = finished
    for name, lang in (("asr_eng_bpe_tiny_sum", "eng"), ("multi_asr_bpe_tiny_sum", "")):
        pieces = sentencepiece.SentencePieceProcessor(
            model_file=str(options.expdir / name / "final/bpe.model")
        )
        known = {c for i in range(len(pieces)) for c in pieces.id_to_piece(i)}
        texts = [
            text
            for x in WORDS
            if lang in ("", x)
            for text in read_table(options.raw / f"asr_{x}_train/text.char").values()
        ]
        assert set("".join(texts)) - {" "} <= known
        assert lang != "eng" or not set("".join(WORDS["yue"])) & known


def test_the_packed_bpe_model_works_elsewhere_with_its_pieces(
    finished, tmp_path, monkeypatch
):
    from espnet2_lamer import register
    from espnet2_lamer.convert.packed import unpack_model
    from espnet2_lamer.export.zoo import pack_model

    _, options, _, found = finished
    final = options.expdir / "asr_lid_bpe_tiny_layer1/final"
    package = tmp_path / "model.zip"
    pack_model(
        *("asr", final / "config.yaml", final / "model.pth", package),
        options=[final / "bpe.model"],
    )
    with zipfile.ZipFile(package) as archive:
        assert "bpe.model" in archive.namelist()
        assert str(options.expdir) not in archive.read("config.yaml").decode()
    monkeypatch.chdir(tmp_path)
    register()
    from espnet2.bin.asr_inference import Speech2Text

    members = unpack_model(package, tmp_path / "cache")
    speech2text = Speech2Text(**members, **GREEDY)
    assert speech2text.tokenizer.model.startswith(str(tmp_path / "cache"))
    expected = read_table(found["asr_lid_bpe_tiny_layer1"]["test"]["free"])
    for utt, path in list(read_table(options.raw / "asr_yue_test/wav.scp").items()):
        wav = soundfile.read(path, dtype="float32")[0]
        assert speech2text(wav)[0][0].strip() == expected[utt]


def test_heads_of_one_upstream_share_the_stored_features(finished):
    _, options, _, _ = finished
    stores = [
        path for path in (options.dumpdir / "feature_store").iterdir() if path.is_dir()
    ]
    # Train and dev of two languages: the weighted sum's for ASR, layer 1's for LID.
    assert len(stores) == 2 * 2 * 2
    widths = [json.loads((s / "info.json").read_text())["num_states"] for s in stores]
    assert sorted(widths) == [1] * 4 + [3] * 4
