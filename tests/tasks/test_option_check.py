"""A wrong option is refused by name before anything is built."""

from pathlib import Path

import pytest
import yaml

from espnet2_lamer.errors import RecipeError

MAIN = Path(__file__).parents[2] / "conf" / "train_ssl_lamer.yaml"


def set_key(config, dotted, value):
    *sections, key = dotted.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[key] = value


@pytest.fixture
def check(tmp_path):
    """Check the main config with one key changed."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from espnet2_lamer.tasks.option_check import check_options

    def check(key=None, value=None, num_classes="1000", **others):
        config = yaml.safe_load(MAIN.read_text(encoding="utf-8")) | others
        if key is not None:
            set_key(config, key, value)
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(config))
        parser = LamerHubertTask.get_parser()
        cmd = ["--config", str(path), "--num_classes", num_classes]
        check_options(parser, parser.parse_args(cmd))

    return check


def test_the_main_config_is_right(check):
    check()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder_conf.final_dimm", 1, "expected some of .*did you mean final_dim"),
        ("encoder_conf.num_classes", 9, "unknown key"),
        ("encoder_conf.lamer.top", 2, "expected some of .*, top_k"),
        ("encoder_conf.lamer.alocation", 2, "did you mean allocation"),
        ("model_conf.balance_wieght", 0.1, "did you mean balance_weight"),
        ("optim_conf.learning_rate", 0.1, "expected some of .*lr"),
        ("scheduler_conf.warmup", 10, "did you mean warmup_steps"),
        ("encoder_conf.mask_length", "ten", "found 'ten', expected int"),
        ("encoder_conf.lamer.rank", 1.5, "found 1.5, expected int"),
        ("encoder_conf.lamer.rank", 0, "found 0, expected 1 or more"),
        ("encoder_conf.lamer.router", "both", "found 'both', expected one of"),
        ("encoder_conf.lamer", 3, "found 3, expected dict"),
        ("encoder_conf.lamer.allocation", 2.5, "found 2.5, expected str"),
        ("optim_conf", "sgd", "found 'sgd', expected 'key: value' lines"),
        ("encoder_conf.mask_prob", 1.5, "found 1.5, expected above 0 and at most 1"),
        ("encoder_conf.mask_length", 0, "found 0, expected 1 or more"),
        ("model_conf.logit_temp", 0.0, "found 0.0, expected above 0"),
        ("model_conf.balance_weight", -1.0, "found -1.0, expected 0 or more"),
        ("optim_conf.betas", 0.9, "found 0.9, expected tuple"),
        ("collate_fn_conf.pad", True, "expected some of bucket_samples, max_sample_si"),
        ("collate_fn_conf.max_sample_size", 100, "found 100, expected 400 or more"),
        ("amp_dtype", "bf61", "found 'bf61', expected one of auto, none, bf16, fp16"),
        ("optim", "adamww", "found 'adamww', expected one of"),
        ("scheduler", "polynomial", "found 'polynomial', expected one of"),
        ("encoder", "lamer", "found 'lamer', expected one of"),
        ("accum_grad", 2.5, "found 2.5, expected int"),
        ("accum_grad", 2, "found 2, expected 1: with update_bins it follows"),
        ("update_bins", -1, "found -1, expected 0 or more"),
        ("device_bins", "some", "found 'some', expected auto, or samples above 0"),
        ("grad_clip", 0.0, "found 0.0, expected above 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(check, key, value, message):
    with pytest.raises(RecipeError, match=message) as error:
        check(key, value)
    # LamerConfig, which knows no encoder, speaks of lamer.rank.
    shown = str(error.value).replace(": lamer.", ": encoder_conf.lamer.")
    assert f"train.yaml: {key}" in shown


@pytest.mark.parametrize(
    ("text", "advice"), [("1e-6", "1.0e-06"), ("15e-4", "0.0015"), ("small", None)]
)
def test_a_number_that_yaml_takes_for_text_is_explained(check, text, advice):
    assert yaml.safe_load(text) == text
    with pytest.raises(RecipeError) as error:
        check("optim_conf.eps", text)
    assert f"optim_conf.eps: found '{text}'" in str(error.value)
    assert ("YAML takes it for text" in str(error.value)) is (advice is not None)
    if advice:
        assert str(error.value).endswith(f"write {advice}")
        assert yaml.safe_load(advice) == float(text)


def test_an_epoch_makes_an_update(check):
    with pytest.raises(RecipeError, match=r"found 9000, .* num_iters_per_epoch \(2000"):
        check("accum_grad", 9000, update_bins=0)


@pytest.mark.parametrize("count", ["0", "-3"])
def test_the_number_of_units_is_at_least_one(check, count):
    with pytest.raises(RecipeError, match=f"num_classes: found {count}, expected 1 or"):
        check(num_classes=count)


def test_without_a_number_of_units_nothing_is_built():
    from espnet2_lamer.bin.hubert_train import main

    with pytest.raises(RecipeError, match="num_classes: found none, .*--num_classes"):
        main(["--config", str(MAIN), "--dry_run", "true"])


def test_training_is_checked_like_a_dry_run(tmp_path):
    from espnet2_lamer.bin.hubert_train import main

    cmd = ["--config", str(MAIN), "--output_dir", str(tmp_path), "--token_list", "none"]
    with pytest.raises(RecipeError, match="model_conf.weight: unknown key"):
        main([*cmd, "--num_classes", "5", "--model_conf", "weight=1"])
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_no_option_has_is_wrong_usage(tmp_path, capsys):
    from espnet2_lamer.bin.hubert_train import main

    path = tmp_path / "train.yaml"
    path.write_text("encoder_config: {}\n")
    with pytest.raises(SystemExit) as exit_:
        main(["--config", str(path), "--dry_run", "true"])
    assert exit_.value.code == 2
    assert "unrecognized arguments: encoder_config" in capsys.readouterr().err
