"""A recogniser of several languages whose upstream routes by them: train to package."""

import json
import shlex
import shutil

import pytest
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import downstream
from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.recogniser import Recogniser
from espnet2_lamer.evaluation.recogniser_files import read_record
from espnet2_lamer.export.zoo import pack_model
from espnet2_lamer.fileio.datadir import read_table
from tests.evaluation.tiny_head import CONFIG, write_set
from tests.export.tiny import write_base, write_experiment

EPOCHS, BATCHES, FROZEN, WEIGHT = 3, 2, 2, 0.5
LANGS = ["eng", "yes"]  # the latter is true to YAML


def config_of(root, name, **frontend):
    settings = {"rank": 2, "shared_layers": 1, "weight": WEIGHT, **frontend}
    config = CONFIG | {
        "max_epoch": EPOCHS,
        "num_iters_per_epoch": BATCHES,
        "keep_nbest_models": EPOCHS,
        "init": "none",
        "frontend_conf": {"freeze_encoder_steps": FROZEN, "lid_routed": settings},
        "upstream_optim_conf": {"experts": {"lr": 0.02}},
    }
    (root / name).write_text(yaml.safe_dump(config))
    return root / name


def train(root, config, output, tune="lid_routed", upstream="base", langs=LANGS):
    return train_head(
        str(root / upstream),
        [root / f"train_{lang}" for lang in langs],
        [root / f"dev_{lang}" for lang in langs],
        root / "store",
        output,
        config,
        HeadOptions(layer=2, tune=tune),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("routed")
    write_experiment(root / "ssl", write_base(root / "base"))
    for number, lang in enumerate(LANGS):
        write_set(root / f"train_{lang}", f"{lang}_train", 6, number, lang)
        write_set(root / f"dev_{lang}", f"{lang}_dev", 3, 10 + number, lang)
    train(root, config_of(root, "tuning.yaml"), root / "exp")
    return root


def weights(path):
    state = torch.load(path, weights_only=True)
    return {k: v for k, v in state.items() if k.startswith("frontend.upstream.")}


def test_lora_and_identifier_train_from_their_release_on_and_nothing_else(root):
    epochs = [weights(root / f"exp/{n}epoch.pth") for n in range(1, EPOCHS + 1)]
    parts = ("lora_A", "lora_B", "language_identifier")
    for found in epochs:
        assert found and all(any(part in key for part in parts) for key in found)
    first, second, third = epochs
    # As many updates as an epoch has are the head's alone.
    assert all((v == 0).all() for k, v in first.items() if "lora_B" in k)
    assert all(not torch.equal(second[key], third[key]) for key in third)
    # One LoRA in the shared layer, one of each language above.
    blocks = "frontend.upstream.wav2vec2.encoder.transformer.layers"
    for block, count in ((0, 1), (1, len(LANGS))):
        a = third[f"{blocks}.{block}.feed_forward.intermediate_dense.lora_A"]
        assert a.shape[:2] == (count, 2)


def test_the_loss_is_ctc_and_the_weighted_cross_entropy_of_the_language(root):
    from espnet2_lamer.tasks.asr import LamerASRTask

    model, _ = LamerASRTask.build_model_from_file(
        root / "exp/config.yaml", root / f"exp/{EPOCHS}epoch.pth"
    )
    model.eval()
    torch.manual_seed(0)
    speech, lengths = torch.randn(3, 9000), torch.tensor([9000, 5000, 7000])
    text = torch.tensor([[2, 3, 4], [3, 4, -1], [2, 2, 3]])
    batch = (speech, lengths, text, torch.tensor([3, 2, 3]))
    lang = torch.tensor([[1], [0], [1]])
    with torch.no_grad():
        loss, stats, _ = model(*batch, lang=lang, lang_lengths=torch.ones(3))
        upstream, logits = model.frontend.upstream, []
        linear = upstream.wav2vec2.language_identifier.linear
        for wav, count in zip(speech, lengths, strict=True):
            state = upstream.extract_features(wav[:count])[0][1]
            logits.append(linear(state[0].mean(0)))
        logs = torch.stack(logits).log_softmax(-1)
    entropy = -logs.gather(1, lang).mean()
    torch.testing.assert_close(stats["loss_lid"][0], entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, stats["loss_ctc"] + WEIGHT * entropy)
    assert stats["acc_lid"] == (logs.argmax(-1) == lang[:, 0]).float().mean()
    with pytest.raises(RecipeError, match="found no language of a batch"):
        model(*batch)


def test_a_run_that_was_stopped_ends_the_same(root, tmp_path):
    log = (root / "exp/train.log").read_text().splitlines()[0]
    words = shlex.split(log.partition("bin.asr_train ")[2])
    words[words.index("--output_dir") + 1] = str(tmp_path / "exp")
    for more in (["--max_epoch", "2"], []):
        downstream._run_espnet([*words, *more], tmp_path / "exp")
    assert "The training was resumed" in (tmp_path / "exp/train.log").read_text()
    name = f"{EPOCHS}epoch.pth"
    expected = torch.load(root / "exp" / name, weights_only=True)
    found = torch.load(tmp_path / "exp" / name, weights_only=True)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_the_finished_model_needs_neither_base_nor_language(root, tmp_path):
    final = root / "exp/final"
    config = yaml.safe_load((final / "config.yaml").read_text())
    assert config["model"] == "espnet"
    assert config["frontend_conf"].keys() == {"upstream_conf", "layer", "fs"}
    routed = config["frontend_conf"]["upstream_conf"]["lid_routed"]
    assert routed["languages"] == LANGS and routed["shared_layers"] == 1
    assert read_record(final)["languages"] == LANGS
    training = json.loads((root / "exp/training.json").read_text())
    assert 0 <= training["valid_language_accuracy"] <= 1
    package = tmp_path / "model.zip"
    files = final / "config.yaml", final / "model.pth", package
    pack_model("asr", *files, options=[final / "recogniser.yaml"])
    shutil.copytree(root / "exp", tmp_path / "alone")
    torch.manual_seed(1)
    speech = torch.randn(12000).numpy()
    encoded = [
        Recogniser(source).encode(speech)
        for source in (root / "exp", tmp_path / "alone", package)
    ]
    assert all(torch.equal(encoded[0], other) for other in encoded[1:])
    # What was trained of the upstream is in it.
    trained = weights(root / f"exp/{EPOCHS}epoch.pth")
    assert trained.keys() <= weights(final / "model.pth").keys()


def test_the_numbers_of_languages_are_of_the_utterances(root):
    names = {str(n): lang for n, lang in enumerate(LANGS)}
    for part, name in (("train", "train"), ("dev", "dev")):
        found = read_table(root / "exp/data" / part / "utt2langid")
        expected = {}
        for lang in LANGS:
            expected |= read_table(root / f"{name}_{lang}" / "utt2lang")
        assert {utt: names[number] for utt, number in found.items()} == expected


def test_a_finished_head_is_kept_until_its_languages_change(root):
    before = (root / "exp/final/inputs.json").stat().st_mtime_ns
    train(root, root / "tuning.yaml", root / "exp")
    assert (root / "exp/final/inputs.json").stat().st_mtime_ns == before
    assert "languages" in json.loads((root / "exp/inputs.json").read_text())


def test_with_every_layer_shared_it_is_plain_lora(root, tmp_path):
    config = config_of(root, "shared.yaml", shared_layers=2)
    final = train(root, config, tmp_path / "exp")
    assert not any("identifier" in key for key in weights(final / "model.pth"))
    training = json.loads((tmp_path / "exp/training.json").read_text())
    assert "valid_language_accuracy" not in training


@pytest.mark.parametrize(
    ("frontend", "more", "message"),
    [
        ({"ranks": 3}, {}, "lid_routed: found 'ranks', expected some of alpha, lang"),
        ({"layers": 2}, {}, "lid_routed: found 'layers', expected some of"),
        ({"weight": -1}, {}, "lid_routed.weight: found -1, expected 0 or more"),
        ({"shared_layers": 3}, {}, "shared_layers: found 3, expected 0 to 2"),
        ({}, {"upstream": "ssl"}, "lid_routed: the model has LoRA experts already"),
        ({}, {"langs": LANGS[:1]}, "lid_routed: found eng, and in dev eng; expected t"),
    ],
)
def test_what_cannot_be_routed_is_refused(root, tmp_path, frontend, more, message):
    config = config_of(tmp_path, "tuning.yaml", **frontend)
    with pytest.raises(RecipeError, match=message):
        train(root, config, tmp_path / "exp", **more)
