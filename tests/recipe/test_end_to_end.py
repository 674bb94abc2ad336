"""The whole recipe on a few minutes of synthetic speech and tiny networks."""

import csv
import json
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_lamer.data.languages import named
from tests.tiny_hubert import ARCHITECTURE

RECIPE = Path(__file__).parents[2] / "egs2" / "lamer_ssl" / "ssl1"


def _tiny_hubert(directory, seed):
    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface

    torch.manual_seed(seed)
    model = build_hubert(ARCHITECTURE)
    save_huggingface(model, directory)
    return directory


def _shorter(source, target, **changes):
    config = yaml.safe_load((RECIPE / source).read_text(encoding="utf-8"))
    for key, value in changes.items():
        if isinstance(value, dict):
            config.setdefault(key, {}).update(value)
        else:
            config[key] = value
    target.write_text(yaml.safe_dump(config))
    return target


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line of a tiny recipe whose corpus is there."""
    from espnet2_lamer.data.mini import build_mini

    root = tmp_path_factory.mktemp("recipe")
    build_mini(root / "data", nj=1, seed=0, minutes_scale=0.04)
    head = {
        "max_epoch": 1,
        "num_iters_per_epoch": 2,
        "scheduler_conf": {"total_steps": 2},
    }
    options = {
        "nj": 1,
        "dask": "",
        "ngpu": 0,
        "num_nodes": 1,
        "seed": 0,
        "skip_stages": "1",
        "datadir": root / "data",
        "dumpdir": root / "dump",
        "expdir": root / "exp",
        "preset": "mini",
        "corpus": "mini",
        "manifest": "",
        "exclude_sources": "",
        "max_missing": 1,
        "base": _tiny_hubert(root / "base", 0),
        "teacher": _tiny_hubert(root / "teacher", 1),
        "teacher_layer": 1,
        "retrain": "false",
        "trust_s3prl_files": "false",
        "new_langs": "cmn yue",
        "replay_langs": "eng",
        "replay_hours": 0.005,
        "replay_sampling": "uniform",
        "replay_alpha": 0.7,
        "replay_clusters": "",
        "dev_hours": 1,
        "min_duration": 2,
        "max_duration": 30,
        "max_bad_audio": 1,
        "drop_overlap": "true",
        "kmeans_hours": 0.01,
        "n_clusters": 12,
        "allocation": "2,3",
        "ssl_tag": "lamer",
        "ssl_config": _shorter(
            "conf/train_ssl_lamer_mini.yaml",
            root / "ssl.yaml",
            max_epoch=1,
            num_iters_per_epoch=3,
            scheduler_conf={"warmup_steps": 1, "total_steps": 3},
            sanity_updates=2,
        ),
        "control": "true",
        "sanity": "false",
        "upstreams": "random base lamer",
        "benchmark": "own",
        "budgets": "all",
        "tracks": "asr lid",
        "eval_langs": "",
        "eval_lists": "",
        "cross_corpus": "false",
        "lid_reading": "per_set",
        "units": "",
        "multi_unit": "char",
        "nbpe": 40,
        "feature_store_gb": 50,
        "eval_seeds": "",
        "learning_rates": "",
        "baselines": "",
        "tune": "head",
        "finetune_config": "conf/tuning/train_asr_finetune_mini.yaml",
        "use_ngram": "false",
        "ngram_num": 6,
        "use_lm": "false",
        "lm_config": "conf/train_lm_transformer.yaml",
        "lm_train_text": "",
        "inference_config": "conf/decode_asr_finetune.yaml",
        "asr_config": _shorter(
            "conf/tuning/train_asr_mlsuperb_mini.yaml", root / "asr.yaml", **head
        ),
        "asr_layer": 1,
        "multi_config": _shorter(
            "conf/tuning/train_asr_mlsuperb_mini.yaml", root / "multi.yaml", **head
        ),
        "lid_config": _shorter(
            "conf/tuning/train_lid_mlsuperb_mini.yaml", root / "lid.yaml", **head
        ),
        "lid_layer": 1,
        "store_dtype": "float32",
        "hf_repo": "",
        "dry_run": "false",
    }

    def make(stage, stop_stage, **changes):
        values = {**options, "stage": stage, "stop_stage": stop_stage, **changes}
        return [part for k, v in values.items() for part in (f"--{k}", str(v))]

    make.root = root
    return make


@pytest.fixture(scope="module")
def finished(command):
    """The same after stages 0 to 14."""
    from espnet2_lamer.bin.recipe import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(RECIPE)
        main(command(0, 14))
    return command


def test_results_name_every_language_unit_upstream_and_interval(finished):
    text = (finished.root / "exp" / "RESULTS.md").read_text()
    rate = r"[\d.]+ \([\d.]+ to [\d.]+\)\|"
    for lang, unit in (("eng", "char"), ("cmn", "pinyin"), ("yue", "jyutping")):
        name = re.escape(named(lang))
        assert re.search(rf"\|{name}, {unit}, \d+ utt\.\|{rate * 3}", text), lang
    assert "|error rate (%) by test set|random|base|lamer|lamer - base|" in text
    for part in ("Language identification", "head-only control", "phone probe", "CKA"):
        assert part in text
    assert "Synthetic formant speech" in text


def test_the_run_has_a_page_with_verdicts_curves_routing_and_sound(finished):
    exp = finished.root / "exp"
    page = (exp / "report.html").read_text()
    changes = json.loads((exp / "results.json").read_text())["changes"]
    # Recognition, phones and identification (twice) against the base, masked units
    # against the control.
    assert len(changes) == 5 * 3
    assert {c["reference"] for c in changes} == {"base", "head-only control"}
    assert {c["lang"] for c in changes if c["old"]} == {"eng"}
    assert len(re.findall(r'<li class="\w+"><b>', page)) == 5
    # Loss, masked accuracy, forgetting, norms; two heat-maps. After three updates
    # routers have no curves yet.
    assert page.count("data:image/png;base64,") == 6
    assert page.count("<audio ") == page.count('<article class="clip">') > 3
    # What stage 8 wrote for a run that stops there.
    alone = json.loads((exp / "analysis" / "results" / "results.json").read_text())
    assert {f["table"] for f in alone["figures"]} >= {"Masked prediction"}


def test_the_heat_map_and_the_parameter_report_are_there(finished):
    exp = finished.root / "exp"
    picture = (exp / "analysis" / "routing_heatmap.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    report = json.loads((exp / "ssl_lamer" / "parameters.json").read_text())
    # 5 experts of rank 12 on both Linears, 5 router rows of width 16.
    assert report["lora"] == 5 * 2 * 12 * (16 + 32)
    assert report["router"] == 5 * 16
    control = json.loads((exp / "ssl_head_only" / "parameters.json").read_text())
    assert control["lora"] == 0
    assert control["trainable"] == control["head"] == report["head"]


def test_what_was_watched_at_each_validation_is_logged_and_drawn(finished):
    exp = finished.root / "exp"
    (line,) = (exp / "ssl_lamer" / "forgetting.jsonl").read_text().splitlines()
    found = json.loads(line)
    for lang in ("eng", "cmn", "yue"):
        assert found["cka"][lang][-1] > 0 and 0 <= found["probe"][lang][-1] <= 1
        assert 0 <= found["acc_m"][lang] <= 1 and 0 <= found["control_acc_m"][lang] <= 1
        for name in ("masked_accuracy_curves", "forgetting_curves"):
            assert lang in (exp / "analysis" / f"{name}.csv").read_text()
            picture = (exp / "analysis" / f"{name}.png").read_bytes()
            assert picture.startswith(b"\x89PNG")
    health = json.loads((exp / "ssl_lamer" / "health.json").read_text())
    assert health["labels"]["train"]["classes"] == 12
    assert "replay (eng)" in (exp / "ssl_lamer" / "train.log").read_text()


def test_a_batch_that_is_not_learnt_fails_and_leaves_what_was_trained(
    finished, caplog, monkeypatch
):
    from espnet2_lamer.bin.recipe import main
    from espnet2_lamer.errors import RecipeError

    monkeypatch.chdir(RECIPE)
    with pytest.raises(RecipeError, match="sanity: one batch could not be learnt"):
        main(finished(0, 14, sanity="true"))
    experiment = finished.root / "exp" / "ssl_lamer"
    found = json.loads((experiment / "sanity.json").read_text())
    assert found["passed"] is False and found["updates"] == 2
    assert "sanity: update 2" in (experiment / "sanity.log").read_text()
    caplog.set_level("INFO")
    main(finished(7, 8))
    assert "stage 7: continual pretraining: done, nothing changed" in caplog.messages


def test_every_package_is_self_contained(finished):
    for path in (finished.root / "exp" / "packed").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.yaml").decode()
            assert str(finished.root) not in config
            assert "RESULTS.md" in archive.namelist()


def test_packed_heads_write_the_same_text_on_the_whole_test_sets(finished):
    from espnet2_lamer.evaluation.runs import Run
    from espnet2_lamer.fileio.datadir import read_table
    from espnet2_lamer.recipe.packing import check_package

    exp, raw = finished.root / "exp", finished.root / "dump" / "raw"
    zips = sorted((exp / "packed").glob("*_lamer_*.zip"))
    assert len(zips) == 4  # ASR of three languages, and LID
    for path in zips:
        run = Run.read(exp / path.stem / "run.json")
        sets = [name for names in run.tests.values() for name in names]
        total = sum(len(read_table(raw / name / "wav.scp")) for name in sets)
        compared = check_package(
            run,
            path,
            exp,
            raw,
            RECIPE / "conf/decode_asr_mlsuperb.yaml",
            utterances=None,
        )
        assert compared == total > 0


def test_the_adapter_file_is_the_pretraining_and_names_no_path(finished):
    from espnet2_lamer import load_model
    from espnet2_lamer.tasks.pretrained import CENTROIDS, read_adapter

    exp = finished.root / "exp"
    path = exp / "packed" / "ssl_lamer.safetensors"
    wavs = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([4000, 2500])
    expected, _ = load_model(exp / "ssl_lamer").extract_features(wavs, lengths)
    adapter = load_model(path, base=finished.root / "base")
    for one, other in zip(
        adapter.extract_features(wavs, lengths)[0], expected, strict=True
    ):
        assert torch.equal(one, other)
    assert read_adapter(path).tensors[CENTROIDS].shape == (12, 16)
    assert str(finished.root).encode() not in path.read_bytes()


def test_a_dry_run_lists_what_would_be_uploaded_each_time(
    finished, caplog, monkeypatch
):
    from espnet2_lamer.bin.recipe import main

    monkeypatch.chdir(RECIPE)
    caplog.set_level("INFO")
    for _ in range(2):
        caplog.clear()
        main(finished(14, 14, hf_repo="me/lamer", dry_run="true"))
        (summary,) = [m for m in caplog.messages if m.startswith("would upload to me/")]
        assert " files, " in summary
        for name in ("meta.yaml", "README.md", "model.pth", "ssl_lamer.safetensors"):
            assert any(m.startswith(f"  {name} (") for m in caplog.messages), name
    main(finished(14, 14))


#: What stages leave that holds no path.
SAME = (
    "dump/raw/*/text.km",
    "dump/units/codebook.npz",
    "dump/units/tokens.txt",
    "exp/label_quality.json",
    "exp/ssl_stats/*/*",
    "exp/ssl_*/valid.loss_m.best.pth",
    "exp/analysis/*.json",
    "exp/*_lamer_*/final/model.pth",
    "exp/RESULTS.md",
    "exp/results.csv",
    "exp/packed/ssl_lamer.safetensors",
)


def undated(path):
    """The bytes of a file, without the line of RESULTS.md that says when."""
    return re.sub(rb"(?m)^- date: .*$", b"", path.read_bytes())


@pytest.mark.slow  # everything a second time
def test_printed_commands_do_by_hand_what_the_stages_did(
    finished, tmp_path, monkeypatch, capsys
):
    from espnet2_lamer.bin.recipe import main
    from espnet2_lamer.recipe.stage import Command

    monkeypatch.chdir(RECIPE)
    places = {"dumpdir": tmp_path / "dump", "expdir": tmp_path / "exp"}
    main(finished(0, 13, print_commands="true", **places))
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "exp").exists()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(commands) >= 13
    for python, flag, module, *arguments in commands:
        assert (python, flag) == ("python", "-m")
        Command(module.removeprefix("espnet2_lamer.bin."), tuple(arguments)).run()
    for pattern in SAME:
        expected = sorted(finished.root.glob(pattern))
        assert expected, pattern
        for path in expected:
            found = tmp_path / path.relative_to(finished.root)
            assert undated(found) == undated(path), found


@pytest.mark.slow  # nine trainings more
def test_tuned_recognisers_are_rows_and_packages_of_their_own(
    finished, tmp_path, monkeypatch
):
    from espnet2_lamer.bin.recipe import main

    monkeypatch.chdir(RECIPE)
    exp = tmp_path / "exp"
    shutil.copytree(finished.root / "exp", exp, symlinks=True)
    finetuning = _shorter(
        "conf/tuning/train_asr_finetune_mini.yaml",
        tmp_path / "finetune.yaml",
        max_epoch=2,
        num_iters_per_epoch=2,
        frontend_conf={"freeze_encoder_steps": 1},
        scheduler_conf={"total_steps": 4},
    )
    decoding = tmp_path / "decoding.yaml"
    decoding.write_text("beam_size: 2\nngram_weight: [0.1, 0.3]\n")
    options = {
        "expdir": exp,
        "upstreams": "lamer",
        "tune": "head experts all",
        "finetune_config": finetuning,
        "use_ngram": "true",
        "ngram_num": 2,
        "inference_config": decoding,
    }
    main(finished(10, 13, **options))
    with (exp / "results.csv").open(encoding="utf-8", newline="") as file:
        keys = {(r["label"], r["unit"], r["system"]) for r in csv.DictReader(file)}
    base = torch.load(exp / "packed/ssl_lamer/model.pth", weights_only=True)
    for lang, unit in (("eng", "char"), ("cmn", "pinyin"), ("yue", "jyutping")):
        for system in ("lamer", "lamer_experts_tuned", "lamer_all_tuned"):
            for row in (system, f"{system}_lm"):
                assert (lang, unit, row) in keys
            name = f"asr_{lang}_{unit}_{system}_layer1"
            assert (exp / "packed" / f"{name}.zip").is_file()
            tuned = torch.load(exp / name / "final/model.pth", weights_only=True)
            moved = {
                key.removeprefix("frontend.upstream.")
                for key, value in tuned.items()
                if key.startswith("frontend.upstream.")
                and not torch.equal(
                    value,
                    base[
                        key.replace(
                            "frontend.upstream.", "encoder.hubert_pretrain_model."
                        )
                    ],
                )
            }
            adapters = {key for key in moved if "lora_" in key or "router" in key}
            assert bool(adapters) == (system != "lamer")
            assert bool(moved - adapters) == (system == "lamer_all_tuned")


def test_a_second_run_finds_every_stage_done(finished, caplog, monkeypatch):
    from espnet2_lamer.bin.recipe import main

    monkeypatch.chdir(RECIPE)
    caplog.set_level("INFO")
    main(finished(0, 14))
    done = [m for m in caplog.messages if m.endswith("done, nothing changed")]
    assert len(done) == 14
    assert not [m for m in caplog.messages if "starts" in m or "runs again" in m]


def test_other_clusters_run_their_stages_and_outdate_the_later_ones(
    finished, caplog, monkeypatch
):
    from espnet2_lamer.bin.recipe import main

    monkeypatch.chdir(RECIPE)
    caplog.set_level("INFO")
    main(finished(4, 6, n_clusters=9))
    assert any("--n_clusters 12 -> 9" in m for m in caplog.messages)
    assert any("stage 7" in m and "out of date" in m for m in caplog.messages)
    caplog.clear()
    main(finished(4, 6))
    assert not any("out of date" in m for m in caplog.messages)


def test_a_late_stage_on_a_clean_tree_names_the_file_and_its_stage(
    command, tmp_path, monkeypatch
):
    from espnet2_lamer.bin.recipe import main
    from espnet2_lamer.errors import RecipeError

    monkeypatch.chdir(RECIPE)
    with pytest.raises(RecipeError, match=r"checkpoints.json.*made by stage 0"):
        main(command(7, 7, expdir=tmp_path / "exp", dumpdir=tmp_path / "dump"))
