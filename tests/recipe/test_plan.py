"""The plan: what it counts, what it says is lost or lacking; that no file changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml

from espnet2_lamer.recipe.plan_costs import feature_cache_bytes
from espnet2_lamer.recipe.plan_parts import BUCKETS, Part
from espnet2_lamer.recipe.schedule import (
    FEWEST,
    MOST,
    WARM_UP,
    schedule_by_hours,
    seconds_per_update,
)
from tests.recipe.test_end_to_end import RECIPE, _shorter, _tiny_hubert

SECONDS = {"eng": [3, 4, 5, 0.5], "cmn": [3, 3, 40, 6]}


@pytest.fixture
def speech(tmp_path):
    """Noise in two folders, one file of it broken."""
    rng = np.random.default_rng(0)
    for lang, lengths in SECONDS.items():
        folder = tmp_path / "speech" / lang
        folder.mkdir(parents=True)
        for number, seconds in enumerate(lengths):
            samples = 0.1 * rng.standard_normal(int(16000 * seconds))
            soundfile.write(folder / f"{number}.wav", samples, 16000)
    (tmp_path / "speech" / "eng" / "bad.wav").write_bytes(b"RIFF and no more")
    return tmp_path


def words(root, **more):
    options = {
        "corpus": "manifest",
        "manifest": root / "speech",
        "new_langs": "cmn",
        "replay_langs": "eng",
        "base": _tiny_hubert(root / "base", 0),
        "teacher": _tiny_hubert(root / "teacher", 1),
        "teacher_layer": 1,
        "allocation": "2,3",
        "nj": 1,
        **{f"{name}dir": root / name for name in ("data", "dump", "exp")},
    }
    return [f"--{name}={value}" for name, value in (options | more).items()]


def plan(root, monkeypatch, capsys, **more):
    from espnet2_lamer.bin.recipe import main

    monkeypatch.chdir(RECIPE)
    cmd = words(root, **more)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    main([*cmd, "--plan=true"])
    after = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    return capsys.readouterr().out, before, after


def test_a_plan_changes_no_file_and_says_what_is_lost(speech, monkeypatch, capsys):
    out, before, after = plan(speech, monkeypatch, capsys)
    assert before == after
    assert "cmn      0.014" in out  # 52 s
    assert "longer than 30 s: 0.7 min lost; --segment vad" in out
    assert "shorter than 2 s: 0.0 min lost" in out
    assert "1 files lost" in out
    assert "cmn: no text in every split: no speech recognition" in out
    assert "not measured" not in out
    assert "another seed of pretraining with its heads: " in out
    assert "--n_clusters 100" in out and "frames per cluster" in out
    start = next(line for line in out.splitlines() if line.startswith("To start"))
    assert "--new_langs cmn" in start and "--plan" not in start


def test_a_plan_without_the_base_on_disk_says_so(speech, monkeypatch, capsys):
    more = {"base": "someone/hubert", "replay_langs": ""}
    out, before, after = plan(speech, monkeypatch, capsys, **more)
    assert before == after
    assert "base someone/hubert: not on disk" in out
    assert "no language identification" in out
    assert "continual pretraining" in out and "not measured" in out


def test_a_base_in_the_cache_of_hugging_face_is_timed(speech, monkeypatch, capsys):
    """As stage 0 leaves an id behind; nothing is asked of the network."""
    snapshot = "models--someone--hubert/snapshots/" + "a" * 40
    _tiny_hubert(speech / "hub" / snapshot, 0)
    refs = speech / "hub/models--someone--hubert/refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", speech / "hub")
    out, before, after = plan(speech, monkeypatch, capsys, base="someone/hubert")
    assert before == after
    assert "not on disk" not in out and "not measured" not in out


def test_a_plan_for_gpus_that_are_not_here_has_counts_and_no_times(
    speech, monkeypatch, capsys
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out, _, _ = plan(speech, monkeypatch, capsys, ngpu=1)
    assert "not measured: no GPU" in out
    assert "updates: 400 of 20 s in 4 epochs" in out


def test_a_plan_has_the_disk_of_the_feature_cache(tmp_path):
    config = tmp_path / "train.yaml"
    options = SimpleNamespace(ssl_config=config)
    found = SimpleNamespace(audio=3600.0, held_out=400.0)
    # 50 frames per second of 512 channels in 4 bytes.
    whole = 4000 * 50 * 512 * 4
    for limit, channels, expected in (
        (0, 512, {}),
        (1, 512, {"dump/feature_cache": whole}),
        (0.1, 512, {"dump/feature_cache": 1e8}),
        (1, None, {"dump/feature_cache": None}),
    ):
        config.write_text(f"feature_cache_gb: {limit}\n")
        trials = SimpleNamespace(channels=channels)
        assert feature_cache_bytes(options, found, trials) == expected


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("modes", [["eval"], ["train"], ["eval", "train"]])
def test_an_upstream_in_train_mode_is_heard_in_every_epoch_of_its_heads(
    tmp_path, dropout, modes
):
    from espnet2_lamer.recipe.plan_costs import Amounts, disk_bytes, stage_seconds
    from espnet2_lamer.recipe.plan_parts import Speech
    from espnet2_lamer.recipe.plan_trial import Trials
    from espnet2_lamer.recipe.schedule import Schedule
    from tests.recipe.evaluation_options import options_of

    config = tmp_path / "head.yaml"
    config.write_text("{max_epoch: 3, num_iters_per_epoch: 20, accum_grad: 2}")
    more = dict.fromkeys(("asr_config", "lid_config", "multi_config"), config)
    options = options_of(
        tmp_path,
        **more | {"ssl_config": config, "upstreams": ["base", "lamer"]},
        **{"upstream_mode": modes, "tracks": ["asr"], "eval_seeds": []},
        **{"learning_rates": [], "nj": 1, "corpus": "mini", "n_clusters": 10},
        **{"control": False, "store_dtype": "float32"},
    )
    part = {"train": Part([5.0] * 10, text=10, files=10)}
    speech = Speech({"eng": part}, "a test", True)
    found = Amounts({"eng": 50.0}, {}, 50.0, ["eng"], Schedule(10, 10, 1, 1), 20.0)
    trials = Trials(forward=0.5, head=2.0, dim=8, drops=dropout > 0)
    seconds = stage_seconds(options, speech, found, trials)["asr_heads"]
    # A head each of base and lamer per mode, of 30 updates after 3 s of start.
    heads = 2 * len(modes) * (3 + 30 * 2.0)
    # In train mode the base alone, 8 utterances of 5 s in each of 60 batches.
    heard = 60 * 8 * 5 * 0.5 if dropout and "train" in modes else 0.0
    stored = 1 if modes == ["train"] and dropout else 2
    assert seconds == pytest.approx(heads + heard + stored * 50 * 0.5)
    disk = disk_bytes(options, speech, found, trials)["dump/feature_store"]
    assert disk == 50 * 50 * 8 * 4 * stored


def test_another_seed_is_pretraining_and_the_share_of_the_heads_that_read_it():
    from espnet2_lamer.recipe.plan_costs import seconds_of_another_seed

    options = SimpleNamespace(upstreams=["base", "lamer", "random"])
    times = {"data": 1.0, "pretraining": 100.0, "analysis": 30.0, "asr_heads": 60.0}
    times |= {"evaluation_sets": 7.0, "lid_heads": 0.0, "results": 9.0, "packing": 5.0}
    assert seconds_of_another_seed(options, [*times], times) == 100 + 99 / 3
    less = [name for name in times if name != "analysis"]
    assert seconds_of_another_seed(options, less, times) == 100 + 69 / 3
    without = [name for name in times if name != "pretraining"]
    assert seconds_of_another_seed(options, without, times) is None
    unknown = times | {"asr_heads": None}
    assert seconds_of_another_seed(options, [*times], unknown) is None


def test_buckets_add_up_to_all_hours():
    rng = np.random.default_rng(1)
    part = Part([*rng.uniform(0.5, 90, 200)], weight=3)
    assert len(part.buckets()) == len(BUCKETS) + 1
    np.testing.assert_allclose(sum(part.buckets()), part.hours())
    assert part.buckets()[-1] == pytest.approx(part.hours(low=BUCKETS[-1]))


@pytest.mark.parametrize("config", [{"update_bins": 1440000}, {"batch_bins": 720000}])
@pytest.mark.parametrize("hours", [1, 10, 25, 1000])
def test_updates_are_passes_times_hours_by_audio_per_update_within_bounds(
    config, hours
):
    config = config | ({} if "update_bins" in config else {"accum_grad": 2})
    found = schedule_by_hours(hours, 40, config)
    wanted = 40 * hours * 3600 / seconds_per_update(config)
    assert seconds_per_update(config) == 90
    assert found.updates == found.per_epoch * found.epochs
    assert abs(found.updates - min(max(wanted, FEWEST), MOST)) < found.epochs
    assert found.warm_up == round(WARM_UP * found.updates)
    arguments = found.arguments(config)
    batches = int(arguments[arguments.index("--num_iters_per_epoch") + 1])
    assert batches == found.per_epoch * config.get("accum_grad", 1)


def _base_of_12_layers(directory):
    import torch

    from espnet2_lamer.convert.architecture import build_hubert
    from espnet2_lamer.convert.huggingface import save_huggingface
    from tests.tiny_hubert import ARCHITECTURE

    torch.manual_seed(0)
    save_huggingface(build_hubert(ARCHITECTURE | {"encoder_num_layers": 12}), directory)
    return directory


@pytest.mark.slow
def test_preset_small_runs_from_data_to_results_on_a_cpu(tmp_path, monkeypatch):
    from espnet2_lamer.bin.recipe import main
    from espnet2_lamer.data.mini import build_mini
    from espnet2_lamer.fileio.datadir import read_table

    # The rule as it is, with bounds for a test's time.
    monkeypatch.setattr("espnet2_lamer.recipe.schedule.FEWEST", 4)
    monkeypatch.setattr("espnet2_lamer.recipe.schedule.MOST", 20)
    build_mini(tmp_path / "mini", 1, 0, minutes_scale=0.04, langs=["eng", "cmn"])
    lines = ["utt_id\tpath\tlang\ttext"]
    for folder in sorted((tmp_path / "mini").glob("*_*")):
        if not (folder / "wav.scp").is_file():
            continue
        texts, lang = read_table(folder / "text"), folder.name[-3:]
        for utt, path in read_table(folder / "wav.scp").items():
            lines.append(f"{utt}\t{path}\t{lang}\t{texts[utt]}")
    (tmp_path / "manifest.tsv").write_text("\n".join(lines) + "\n")
    heads = {"max_epoch": 1, "num_iters_per_epoch": 2}
    heads["scheduler_conf"] = {"total_steps": 2}
    mini = "conf/tuning/train_asr_mlsuperb_mini.yaml"
    head = _shorter(mini, tmp_path / "head.yaml", **heads)
    ssl = "conf/train_ssl_lamer_small.yaml"
    changes = {"update_bins": 160000, "batch_bins": 160000, "use_tensorboard": False}
    ssl = _shorter(ssl, tmp_path / "train_ssl_lamer.yaml", num_workers=0, **changes)
    options = {
        "preset": "small",
        "manifest": tmp_path / "manifest.tsv",
        "base": _base_of_12_layers(tmp_path / "base12"),
        "teacher": _tiny_hubert(tmp_path / "teacher", 1),
        "allocation": "2,4,6,8",
        "teacher_layer": 1,
        "n_clusters": 12,
        "ssl_config": ssl,
        "asr_config": head,
        "lid_config": head,
        "multi_config": head,
        "min_duration": 0.5,
    }
    monkeypatch.chdir(RECIPE)
    main([*words(tmp_path, **options), "--stop_stage=13"])
    results = (tmp_path / "exp" / "RESULTS.md").read_text(encoding="utf-8")
    assert "cmn" in results
    (config,) = (tmp_path / "exp").glob("ssl_lamer*/config.yaml")
    written = yaml.safe_load(config.read_text(encoding="utf-8"))
    steps = written["max_epoch"] * written["num_iters_per_epoch"]
    assert written["scheduler_conf"]["total_steps"] == steps == 20
