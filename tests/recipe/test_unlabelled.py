"""Speech without text through the recipe: what is left out is said, the rest runs."""

import json
import zipfile

import pytest

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from tests.recipe.test_end_to_end import RECIPE, _shorter, _tiny_hubert


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with speech of two languages, and what is known of every utterance."""
    from espnet2_lamer.data.mini import build_mini

    root = tmp_path_factory.mktemp("speech")
    build_mini(root / "mini", nj=1, seed=0, minutes_scale=0.04, langs=["eng", "cmn"])
    rows = []
    for lang in ("eng", "cmn"):
        for folder in sorted((root / "mini").glob(f"*_{lang}")):
            wavs = read_table(folder / "wav.scp")
            speakers, texts = (read_table(folder / n) for n in ("utt2spk", "text"))
            rows += [(u, p, lang, texts[u], speakers[u]) for u, p in wavs.items()]
    return root, rows


def write_manifest(root, rows, with_text):
    """List speech; ``with_text`` says of an utterance whether it keeps its text."""
    path = root / "manifest.tsv"
    lines = ["utt_id\tpath\tlang\ttext\tspeaker"]
    for utt, wav, lang, text, speaker in rows:
        text = text if with_text(utt, lang) else ""
        lines.append("\t".join((utt, wav, lang, text, speaker)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def options_of(root, manifest, **more):
    """The command line of a tiny recipe on a manifest."""
    head = {
        "max_epoch": 1,
        "num_iters_per_epoch": 2,
        "scheduler_conf": {"total_steps": 2},
    }
    ssl = {
        "max_epoch": 1,
        "num_iters_per_epoch": 3,
        "scheduler_conf": {"warmup_steps": 1, "total_steps": 3},
    }
    heads = _shorter(
        "conf/tuning/train_asr_mlsuperb_mini.yaml", root / "head.yaml", **head
    )
    options = {
        "corpus": "manifest",
        "manifest": manifest,
        "new_langs": "cmn",
        "replay_langs": "eng",
        "datadir": root / "data",
        "dumpdir": root / "dump",
        "expdir": root / "exp",
        "base": _tiny_hubert(root / "base", 0),
        "teacher": _tiny_hubert(root / "teacher", 1),
        "teacher_layer": 1,
        "asr_layer": 1,
        "lid_layer": 1,
        "nj": 1,
        "min_duration": 0.5,
        "kmeans_hours": 0.01,
        "n_clusters": 12,
        "allocation": "2,3",
        "ssl_tag": "lamer",
        "ssl_config": _shorter(
            "conf/train_ssl_lamer_mini.yaml", root / "ssl.yaml", **ssl
        ),
        "upstreams": "base lamer",
        "asr_config": heads,
        "lid_config": heads,
        "multi_config": heads,
    }
    return [f"--{name}={value}" for name, value in (options | more).items()]


def run(root, manifest, monkeypatch, **more):
    from espnet2_lamer.bin.recipe import main

    monkeypatch.chdir(RECIPE)
    main(options_of(root, manifest, **more))


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Options of a recipe whose stage 1 found speech, with text in some sets."""
    from espnet2_lamer.recipe.command import read_options
    from espnet2_lamer.recipe.stages import ssl1

    def make(texts, *more):
        for name, text in texts.items():
            folder = tmp_path / "data" / name
            folder.mkdir(parents=True)
            (folder / "wav.scp").write_text("u a.wav\n")
            (folder / "utt2lang").write_text(f"u {name[-3:]}\n")
            if text:
                (folder / "text").write_text(f"u {text}\n")
        monkeypatch.chdir(RECIPE)
        words = ["--new_langs=cmn", "--replay_langs=eng", "--corpus=manifest", *more]
        words += [f"--{n}dir={tmp_path / n}" for n in ("data", "dump", "exp")]
        return read_options(ssl1, words)

    return make


def sets(**texts):
    """Text of every set by language: of train, dev and test, None for no set."""
    return {
        f"{split}_{lang}": text
        for lang, of_splits in texts.items()
        for split, text in zip(("train", "dev", "test"), of_splits, strict=True)
        if text is not None
    }


@pytest.mark.parametrize(
    ("cmn", "reason"),
    [
        (("", "", ""), "train"),
        (("好", "好", ""), "test"),
        (("？！", "好", "好"), "train"),
    ],
)
def test_heads_with_text_are_planned_where_there_is_text(planned, cmn, reason):
    from espnet2_lamer.recipe.benchmark import planned_tasks, without_text

    tracks = "--tracks=asr multi_asr lid asr_lid"
    options = planned(sets(eng=("a", "b", "c"), cmn=cmn), tracks)
    assert without_text(options) == {"cmn": reason}
    found = {task.track: task.langs for task in planned_tasks(options)}
    both = ("eng", "cmn")
    one = dict.fromkeys(("asr", "multi_asr", "asr_lid"), ("eng",))
    assert found == one | {"lid": both}
    # The same language alone: nothing to recognise, and nothing to tell it from.
    options.replay_langs = []
    assert planned_tasks(options) == []
    options.replay_langs, options.eval_langs = ["eng"], ["eng"]
    assert {task.track for task in planned_tasks(options)} == set(one)


def test_before_there_are_data_everything_is_planned(planned):
    from espnet2_lamer.recipe.benchmark import without_text

    assert without_text(planned({})) == {}


def test_what_evaluation_needs_is_missed_before_anything_long(planned):
    from espnet2_lamer.recipe.data import check_evaluation

    there = sets(eng=("a", "b", "c"), cmn=("a", "b", None))
    options = planned(there)
    with pytest.raises(RecipeError, match=r"test_cmn/wav.scp: .*--stop_stage 8"):
        check_evaluation(options)
    # Who only pretrains does not need it.
    options.stop_stage = 8
    check_evaluation(options)
    options.stop_stage, options.eval_langs = 13, ["eng"]
    check_evaluation(options)


def test_sets_of_other_benchmarks_are_missed_too(planned):
    from espnet2_lamer.recipe.data import check_evaluation

    options = planned({}, "--benchmark=paper", "--budgets=1h")
    with pytest.raises(RecipeError, match=r"commonvoice/train_eng/wav.scp: file not"):
        check_evaluation(options)


def test_a_unit_that_a_language_does_not_have_is_refused_at_once(planned):
    with pytest.raises(RecipeError, match="--units: found 'eng=pinyin'"):
        planned({}, "--units=eng=pinyin")


@pytest.mark.slow  # all stages
def test_bare_speech_of_a_new_language_goes_through_to_a_packed_model(
    corpus, tmp_path, monkeypatch, caplog
):
    root, rows = corpus
    manifest = write_manifest(tmp_path, rows, lambda utt, lang: False)
    run(tmp_path, manifest, monkeypatch)
    exp = tmp_path / "exp"
    assert sorted(p.name for p in (exp / "packed").glob("*.zip")) == [
        "lid_lamer_layer1.zip",
        "ssl_lamer.zip",
    ]
    assert "RESULTS.md" in zipfile.ZipFile(exp / "packed/ssl_lamer.zip").namelist()
    page = (exp / "RESULTS.md").read_text()
    for lang in ("cmn", "eng"):
        assert f"Note: {lang} is left out of asr: no utterance of its" in page
        assert f"{lang}: no utterance of train has text" in caplog.text
    found = json.loads((exp / "results.json").read_text())
    tables = {figure["table"] for figure in found["figures"]}
    assert {
        "Language identification",
        "Masked prediction",
        "Similarity to the base: linear CKA",
        "Test sets",
    } <= tables
    assert "Monolingual speech recognition" not in tables
    # A second run finds every stage done.
    caplog.clear()
    caplog.set_level("INFO")
    run(tmp_path, manifest, monkeypatch)
    done = [m for m in caplog.messages if m.endswith("done, nothing changed")]
    assert len(done) == 15


@pytest.mark.slow  # all stages
def test_a_language_with_text_keeps_its_recogniser_beside_one_without(
    corpus, tmp_path, monkeypatch
):
    root, rows = corpus
    texted = {utt for utt, _, lang, *_ in rows[::2] if lang == "eng"}
    manifest = write_manifest(tmp_path, rows, lambda utt, lang: utt in texted)
    run(tmp_path, manifest, monkeypatch, tracks="asr multi_asr lid")
    exp = tmp_path / "exp"
    assert sorted(p.name for p in (exp / "packed").glob("*.zip")) == [
        "asr_eng_char_lamer_layer1.zip",
        "lid_lamer_layer1.zip",
        "multi_asr_char_lamer_layer1.zip",
        "ssl_lamer.zip",
    ]
    page = (exp / "RESULTS.md").read_text()
    assert "Note: cmn is left out of asr and multi_asr: no utterance of its" in page
    assert "eng is left out" not in page
    raw = tmp_path / "dump/raw"
    assert {*read_table(raw / "asr_eng_test/wav.scp")} <= texted
    assert not (raw / "asr_cmn_test/text").exists()
