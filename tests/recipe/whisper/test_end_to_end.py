"""The whole Whisper recipe on seconds of synthetic speech and a tiny random Whisper."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from espnet2_lamer.fileio.datadir import read_table
from tests.whisper.small_whisper import save_whisper

RECIPE = Path(__file__).parents[3] / "egs2" / "lamer_ssl" / "asr1"
LAYERS, WIDTH = 2, 32
LAST = 11


def tiny_whisper(path):
    """Write a random Whisper with the true vocabulary, in openai-whisper's format."""
    dims = {"n_audio_layer": LAYERS, "n_text_layer": LAYERS, "n_text_ctx": 448}
    return save_whisper(path, **dims)


def shorter(name, target, **lora):
    """Write a mini config with two updates and smaller LoRAs."""
    source = RECIPE / "conf" / "tuning" / f"train_asr_whisper_{name}_mini.yaml"
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    config |= {"max_epoch": 2, "num_iters_per_epoch": 1, "log_interval": 1}
    config["scheduler_conf"] |= {"total_steps": 4, "pct_start": 0.5}
    config["encoder_conf"]["lora"] |= lora
    config["decoder_conf"]["lora"] = config["encoder_conf"]["lora"]
    target.write_text(yaml.safe_dump(config))
    return target


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line of a tiny recipe whose corpus is there."""
    from espnet2_lamer.data.mini import build_mini

    root = tmp_path_factory.mktemp("asr1")
    build_mini(root / "data", nj=1, seed=0, minutes_scale=0.04)
    # A random model does not end by itself.
    (root / "decode.yaml").write_text("batch_seconds: 60\nmax_tokens: 4\n")
    options = {
        "skip_stages": "1",
        "ngpu": 0,
        "nj": 1,
        "seed": 0,
        "datadir": root / "data",
        "dumpdir": root / "dump",
        "expdir": root / "exp",
        "preset": "mini",
        "corpus": "mini",
        "manifest": "",
        "exclude_sources": "",
        "max_missing": 1,
        "langs": "eng yue",
        "train_minutes": 0.4,
        "dev_utts": 1,
        "test_utts": 2,
        "min_duration": 1,
        "max_duration": 12,
        "max_bad_audio": 1,
        "whisper": tiny_whisper(root / "tiny.pt"),
        "prompts": "eng=en yue=zh",
        "systems": "frozen experts mole kd_layerwise",
        "shared_layers": "",
        "student_rank": "",
        "expert_config": shorter("expert", root / "expert.yaml", rank=4),
        "multilingual_config": shorter("multilingual", root / "multi.yaml", rank=4),
        "full_config": shorter("full", root / "full.yaml"),
        "mole_config": shorter("mole", root / "mole.yaml", shared_layers=1),
        "kd_config": shorter("kd", root / "kd.yaml", student_rank=8),
        "decode_config": root / "decode.yaml",
        "pack": "mole kd_layerwise",
        "hf_repo": "",
        "dry_run": "false",
    }

    def make(stage, stop_stage, **changes):
        values = {**options, "stage": stage, "stop_stage": stop_stage, **changes}
        return [part for k, v in values.items() for part in (f"--{k}", str(v))]

    make.root = root
    return make


def run(command_line):
    from espnet2_lamer.bin.whisper_recipe import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(RECIPE)
        main(command_line)


@pytest.fixture(scope="module")
def finished(command):
    """Two languages, all stages."""
    run(command(0, LAST))
    return command


def systems_in(text, lang, unit):
    """Return the systems that RESULTS.md has a figure with an interval for."""
    row = rf"\|{lang}, {unit}, 2 utt\.\|(\w+)\|[\d.]+ \([\d.]+ to [\d.]+\)\|"
    return set(re.findall(row, text))


def test_results_name_every_system_unit_interval_and_token(finished):
    text = (finished.root / "exp" / "RESULTS.md").read_text()
    expected = {"experts", "kd_layerwise"}
    expected |= {f"{s}_{r}" for s in ("frozen", "mole") for r in ("aware", "agnostic")}
    for lang, unit in (
        *(("eng", "word"), ("eng", "char")),
        *(("yue", "char"), ("yue", "jyutping")),
    ):
        assert systems_in(text, lang, unit) == expected, (lang, unit)
    assert "eng <|en|>, yue <|zh|>" in text and "Synthetic formant speech" in text
    for part in ("Over languages", "Language identification", "training (s)"):
        assert part in text


def trainable(root, name):
    report = json.loads((root / "exp" / name / "training.json").read_text())
    assert report["updates"] == 2 and report["seconds"] > 0
    return report["parameters"]["trainable"]


# Rank 4 on all Linears: attention 32 -> 32, MLP 32 <-> 128; a decoder's block has two
# attentions.
EXPERT = LAYERS * (3 * (4 * 4 * 2 * WIDTH) + 2 * (2 * 4 * 5 * WIDTH))


def test_what_trains_is_what_the_method_says(finished):
    for lang in ("eng", "yue"):
        assert trainable(finished.root, f"experts/{lang}") == EXPERT
    identifier = WIDTH * 256 + 256 + 256 * 2 + 2
    assert trainable(finished.root, "mole") == 1 * 2 + identifier
    assert trainable(finished.root, "kd_layerwise") == 2 * EXPERT  # rank 8


def test_a_second_run_finds_every_stage_done(finished, caplog):
    caplog.set_level("INFO")
    run(finished(0, LAST))
    done = [m for m in caplog.messages if m.endswith("done, nothing changed")]
    assert len(done) == LAST  # stage 1 is left out
    assert not [m for m in caplog.messages if "starts" in m or "runs again" in m]


def test_a_config_that_does_not_fit_names_the_key(finished, tmp_path):
    from espnet2_lamer.errors import RecipeError

    config = shorter("mole", tmp_path / "mole.yaml", shared_layers=3)
    with pytest.raises(RecipeError, match="shared_layers"):
        run(finished(5, 5, mole_config=config))
    with pytest.raises(RecipeError, match=r"--shared_layers: found 3, expected 1 to 2"):
        run(finished(0, 0, shared_layers="3", expdir=tmp_path / "exp"))


def test_a_token_that_whisper_lacks_is_refused(finished, tmp_path):
    from espnet2_lamer.errors import RecipeError

    prompts = "eng=en yue=yue"
    with pytest.raises(RecipeError, match=r"--prompts: found yue=yue.*new:zh"):
        run(finished(0, 0, prompts=prompts, expdir=tmp_path / "exp"))


def test_packages_hold_all_of_whisper_and_no_path(finished):
    packed = sorted((finished.root / "exp" / "packed").iterdir())
    names = ["whisper_kd_layerwise.zip", "whisper_mole.zip"]
    assert [path.name for path in packed] == names
    for path in packed:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.yaml").decode()
            card = archive.read("README.md").decode()
        assert str(finished.root) not in config + card
        assert "whisper: null" in config and "Speech2Text" in card


@pytest.fixture(scope="module")
def first_experts(finished):
    """Files of the two experts, before the third one came."""
    experts = finished.root / "exp" / "experts"
    names = ("expert.safetensors", "training.json", "checkpoint.pth")
    paths = [experts / lang / name for lang in ("eng", "yue") for name in names]
    return {path: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def everything(finished, first_experts):
    """A third language, every system, two depths of the mixture."""
    changes = {
        "langs": "eng yue cmn",
        "prompts": "eng=en cmn=zh yue=zh",
        "systems": "frozen multilingual full experts mole kd_none kd_output "
        "kd_layerwise",
        "shared_layers": "1 2",
        "pack": "mole kd_layerwise experts",
    }

    def make(stage, stop_stage, **more):
        return finished(stage, stop_stage, **{**changes, **more})

    make.root = finished.root
    run(make(0, LAST))
    return make


@pytest.mark.slow
def test_an_expert_added_later_leaves_the_others_as_they_are(everything, first_experts):
    for path, content in first_experts.items():
        assert path.read_bytes() == content, path
    assert trainable(everything.root, "experts/cmn") == EXPERT


@pytest.mark.slow
def test_every_system_is_in_the_table(everything):
    text = (everything.root / "exp" / "RESULTS.md").read_text()
    both = ("frozen", "multilingual", "full", "mole_l1", "mole_l2")
    expected = {"experts", "kd_none", "kd_output", "kd_layerwise"}
    expected |= {f"{name}_{route}" for name in both for route in ("aware", "agnostic")}
    assert systems_in(text, "cmn", "pinyin") == expected
    figures = json.loads((everything.root / "exp" / "results.json").read_text())
    found = {c["system"] for c in figures["confusion"]}
    assert found == {f"{name}_agnostic" for name in both}


@pytest.mark.slow
def test_parameters_of_the_other_systems(everything):
    root = everything.root
    assert trainable(root, "multilingual") == EXPERT
    assert trainable(root, "kd_none") == trainable(root, "kd_output") == 2 * EXPERT
    identifier = WIDTH * 256 + 256 + 256 * 3 + 3
    assert trainable(root, "mole_l2") == 2 * 3 + identifier
    whole = json.loads((root / "exp/full/training.json").read_text())["parameters"]
    assert whole["trainable"] == whole["total"] > 10 * EXPERT


@pytest.mark.slow
def test_teachers_run_once_for_both_distilled_students(everything):
    cache = everything.root / "exp" / "teacher_cache"
    utts = {
        utt
        for name in ("kd_output", "kd_layerwise")
        for split in ("train", "dev")
        for utt in read_table(everything.root / f"exp/{name}/data/{split}/wav.scp")
    }
    # The first run's teachers were the experts of two languages.
    assert 0 < len(list(cache.rglob("*.safetensors"))) <= 2 * len(utts)


@pytest.mark.slow
def test_a_stage_killed_between_two_trainings_goes_on(everything, caplog, monkeypatch):
    from espnet2_lamer.recipe.whisper import training

    options = {"student_rank": "4 5"}
    real, trained = training.run_task, []

    def killed(run_options, directory, settings, more):
        if trained:
            raise KeyboardInterrupt
        trained.append(directory.name)
        real(run_options, directory, settings, more)

    monkeypatch.setattr(training, "run_task", killed)
    with pytest.raises(KeyboardInterrupt):
        run(everything(6, 6, **options))
    monkeypatch.setattr(training, "run_task", real)
    caplog.set_level("INFO")
    run(everything(6, 6, **options))
    assert any("goes on where it stopped" in m for m in caplog.messages)
    assert any(f"{trained[0]}: already trained" in m for m in caplog.messages)
    for name in ("kd_none_r5", "kd_output_r5"):
        assert (everything.root / "exp" / name / "training.json").is_file()


@pytest.mark.slow
def test_a_package_transcribes_in_a_fresh_process(finished, tmp_path):
    root = finished.root
    wav = next(iter(read_table(root / "dump/raw/whisper_eng_test/wav.scp").values()))
    code = f"""
import soundfile, espnet2_lamer
from espnet2.bin.asr_inference import Speech2Text
from espnet2_lamer.convert.packed import unpack_model
espnet2_lamer.register()
files = unpack_model({str(root / "exp/packed/whisper_mole.zip")!r}, "models")
model = Speech2Text(**files, beam_size=1, ctc_weight=0.0, maxlenratio=-5)
print("TEXT", repr(model(soundfile.read({wav!r}, dtype="float32")[0])[0][0]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"^TEXT '.+'$", done.stdout, re.MULTILINE)
