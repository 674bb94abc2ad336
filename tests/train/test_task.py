"""The ESPnet task: defaults, what the optimizer holds, data names, refusals."""

import argparse

import pytest
import torch
import yaml

from espnet2_lamer.errors import RecipeError

ENCODER = {
    "extractor_conv_layer_config": [[8, 10, 5], [8, 8, 8], [8, 4, 4], [8, 2, 2]],
    "encoder_embed_dim": 16,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 32,
    "final_dim": 8,
}


@pytest.fixture(scope="module")
def task():
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    return LamerHubertTask


def arguments(task, tmp_path, lamer=None, **config):
    """Parse a config file as the command line does."""
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("0\n1\n2\n<unk>\n<sos/eos>\n")
    config = {
        "num_classes": 3,
        "encoder_conf": {**ENCODER, "lamer": lamer},
        **config,
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    cmd = ["--config", str(path), "--token_list", str(tokens), "--output_dir", "exp"]
    return task.get_parser().parse_args(cmd)


LAMER = {"allocation": "2,4", "rank": 2}


def test_defaults_choose_our_classes_and_a_raw_waveform(task, tmp_path):
    args = arguments(task, tmp_path, LAMER)
    found = {
        key: getattr(args, key)
        for key in ("encoder", "model", "frontend", "normalize", "specaug", "amp_dtype")
    }
    assert found == {
        "encoder": "lamer_hubert",
        "model": "lamer",
        "frontend": None,
        "normalize": None,
        "specaug": None,
        "amp_dtype": "auto",
    }
    assert args.iterator_type == "task"
    assert "lang" in task.optional_data_names()


def test_the_built_model_keeps_its_tokens_in_the_config(task, tmp_path):
    args = arguments(task, tmp_path, LAMER, model_conf={"balance_weight": 0.5})
    model = task.build_model(args)
    assert args.token_list == ["0", "1", "2", "<unk>", "<sos/eos>"]
    assert model.balance_weight == 0.5
    assert model.encoder.lamer.rank == 2


@pytest.mark.parametrize("lamer", [LAMER, {"allocation": 0}, None])
def test_the_optimizer_holds_only_what_trains(task, tmp_path, lamer):
    args = arguments(
        task, tmp_path, lamer, optim="adamw", optim_conf={"lr": 0.1, "eps": 1e-6}
    )
    model = task.build_model(args)
    (optimizer,) = task.build_optimizers(args, model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["eps"] == 1e-6


def test_fp16_needs_a_gpu_and_gets_a_loss_scale(task, tmp_path):
    args = arguments(task, tmp_path, LAMER, amp_dtype="fp16")
    model = task.build_model(args)
    args.ngpu = 0
    with pytest.raises(RecipeError, match="amp_dtype: found fp16 with ngpu 0"):
        task.build_optimizers(args, model)
    args.ngpu, args.use_amp = 1, False
    task.build_optimizers(args, model)
    assert args.use_amp is True


def test_routing_statistics_follow_the_log_interval_into_the_experiment(task, tmp_path):
    args = arguments(task, tmp_path, LAMER, log_interval=7)
    args.output_dir = str(tmp_path / "exp")
    statistics = task.build_model(args).routing_statistics
    assert statistics.interval == 7
    assert statistics.path == tmp_path / "exp" / "routing.jsonl"


def test_an_update_changes_what_trains_and_nothing_else(task, tmp_path):
    args = arguments(task, tmp_path, LAMER, optim="sgd", optim_conf={"lr": 1.0})
    torch.manual_seed(0)
    model = task.build_model(args)
    (optimizer,) = task.build_optimizers(args, model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    batch = {
        "speech": torch.randn(1, 4000),
        "speech_lengths": torch.tensor([4000]),
        "text": torch.randint(0, 3, (1, 12)),
        "text_lengths": torch.tensor([12]),
        "mask_indices": torch.tensor([[2, 3, 4]]),
    }
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch)[0].backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        # Layer 0 has N = K: its router's gates sum to 1, so it does learn, too.
        assert changed is parameter.requires_grad, name


def test_our_schedule_can_be_chosen_by_name(task, tmp_path):
    from espnet2.tasks.abs_task import scheduler_classes

    from espnet2_lamer.train.update import PolynomialDecayLR

    args = arguments(task, tmp_path, LAMER, scheduler="polynomialdecaylr")
    assert scheduler_classes[args.scheduler] is PolynomialDecayLR


def test_collate_options_come_from_the_config(task, tmp_path):
    args = arguments(
        task,
        tmp_path,
        LAMER,
        seed=3,
        collate_fn_conf={"max_sample_size": 32000},
    )
    args.encoder_conf |= {"mask_prob": 0.5, "mask_length": 4}
    collate = task.build_collate_fn(args, train=True)
    assert (collate.max_samples, collate.bucket) == (32000, 4000)
    assert (collate.mask_prob, collate.mask_length) == (0.5, 4)
    assert (collate.seed, collate.draw) == (3, 1)
    assert task.build_collate_fn(args, train=False).draw == 0


def test_another_encoder_or_number_of_units_is_refused(task, tmp_path):
    args = arguments(task, tmp_path, LAMER, encoder="torchaudio_hubert")
    args.encoder_conf = {}
    with pytest.raises(RecipeError, match="encoder: found 'torchaudio_hubert', expec"):
        task.build_model(args)
    args = arguments(task, tmp_path, LAMER, num_classes=4)
    with pytest.raises(RecipeError, match=r"0 .. 3 in order.*for num_classes 4"):
        task.build_model(args)


def test_registering_twice_changes_nothing():
    from espnet2.tasks.hubert import encoder_choices, model_choices

    import espnet2_lamer

    espnet2_lamer.register()
    before = dict(encoder_choices.classes), dict(model_choices.classes)
    espnet2_lamer.register()
    assert before == (encoder_choices.classes, model_choices.classes)
    assert {"lamer_hubert"} <= set(before[0]) and {"lamer"} <= set(before[1])


def test_lengths_come_from_the_shape_file(task, tmp_path):
    from espnet2.tasks.abs_task import IteratorOptions

    for name, line in (("wav.scp", "utt1 a.wav"), ("text", "utt1 0 1 2")):
        (tmp_path / name).write_text(line + "\n")
    (tmp_path / "shape").write_text("utt1 1360\n")
    args = arguments(task, tmp_path, LAMER)
    args = argparse.Namespace(**vars(args))
    options = IteratorOptions(
        shape_files=[str(tmp_path / "shape")],
        collate_fn=None,
        batch_size=1,
        batch_bins=32000,
        batch_type="numel",
        num_batches=None,
        num_iters_per_epoch=None,
        distributed=False,
        train=True,
        data_path_and_name_and_type=[
            (str(tmp_path / "wav.scp"), "speech", "sound"),
            (str(tmp_path / "text"), "text", "text_int"),
        ],
        preprocess_fn=None,
        max_cache_size=0,
        max_cache_fd=0,
        allow_multi_rates=False,
    )
    iterator = task.build_task_iter_factory(args, options, "train")
    assert iterator.lengths == {"utt1": 1360}
    options.shape_files = [str(tmp_path / "gone")]
    with pytest.raises(RecipeError, match="gone: file not found; .* statistics"):
        task.build_task_iter_factory(args, options, "train")
