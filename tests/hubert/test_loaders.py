"""A checkpoint without its base never becomes a model, whichever loader reads it."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import espnet2_lamer
from espnet2_lamer.asr.encoder.lamer_hubert import GUARD
from espnet2_lamer.errors import RecipeError
from tests.hubert.conftest import UNITS
from tests.tiny_hubert import ARCHITECTURE

TOKENS = [*map(str, range(UNITS)), "<unk>", "<sos/eos>"]
LENGTHS = torch.tensor([3200, 2000])
FAMILY = {
    "bias": {"allocation": "2,4", "rank": 2, "balance": "bias"},
    # No tensor of it but the guard tells other loaders that a backbone is missing.
    "head only": {"allocation": 0},
}


def config_of(task, **values):
    """A config.yaml as training writes it: every option of ESPnet's."""
    args = vars(task.get_parser().parse_args(["--output_dir", "exp"]))
    return args | {"num_classes": UNITS, "token_list": TOKENS, "init": None} | values


def write(experiment, config):
    (experiment / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def states(wav2vec2):
    """Hidden states after every block."""
    wavs = torch.randn(2, 3200, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return wav2vec2.eval().extract_features(wavs, LENGTHS)[0]


@pytest.fixture(scope="module", params=FAMILY, ids=lambda name: name.replace(" ", "-"))
def trained(request, tmp_path_factory):
    """An experiment, its base in a directory of its own, and its hidden states."""
    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from tests.hubert.conftest import _write_base

    espnet2_lamer.register()
    directory = tmp_path_factory.mktemp("loaders")
    base = _write_base(directory / "base", 0)
    config = config_of(
        LamerHubertTask,
        encoder_conf={"base": base, "lamer": FAMILY[request.param], "final_dim": 8},
    )
    model = LamerHubertTask.build_model(argparse.Namespace(**config)).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("lora_B", "selection_bias")):
                tensor.normal_()
    experiment = directory / "exp"
    experiment.mkdir()
    write(experiment, config)
    torch.save(model.state_dict(), experiment / "latest.pth")
    return directory, states(model.encoder.wav2vec2)


@pytest.fixture
def experiment(trained, tmp_path):
    """A copy of it to be damaged; the base is the shared one."""
    shutil.copytree(trained[0] / "exp", tmp_path / "exp")
    return tmp_path / "exp"


def change(experiment, **encoder_conf):
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    config["encoder_conf"] |= encoder_conf
    write(experiment, config)


def ours(experiment):
    return espnet2_lamer.load_model(experiment).wav2vec2


def our_task(experiment):
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    return LamerHubertTask.build_model_from_file(*files(experiment))[0]


def espnets_task(experiment):
    from espnet2.tasks.hubert import HubertTask

    return HubertTask.build_model_from_file(*files(experiment))[0]


def s3prl_local(experiment):
    from s3prl.upstream.espnet_hubert.hubconf import espnet_hubert_local

    return espnet_hubert_local(str(files(experiment)[1])).model.wav2vec2


def s3prl_custom(experiment):
    from s3prl.upstream.espnet_hubert.hubconf import espnet_hubert_custom

    # S3PRL's runner passes more.
    path = str(files(experiment)[1])
    return espnet_hubert_custom(ckpt=path, model_config=None).model.wav2vec2


def frontend(experiment):
    from espnet2_lamer.tasks.upstream_frontend import LamerUpstreamFrontend

    return LamerUpstreamFrontend(upstream=str(experiment)).upstream.wav2vec2


LOADERS = [ours, our_task, espnets_task, s3prl_local, s3prl_custom, frontend]


def files(experiment):
    weights = experiment / "model.pth"
    if not weights.exists():
        weights = experiment / "latest.pth"
    return experiment / "config.yaml", weights


def load(loader, experiment):
    """Load and return the backbone with its experts, wherever the loader has it."""
    found = loader(experiment)
    return found.encoder.wav2vec2 if hasattr(found, "collect_feats") else found


@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_rebuilds_the_model_from_the_checkpoint_and_the_base(
    loader, trained
):
    directory, expected = trained
    torch.manual_seed(7)
    for one, other in zip(
        states(load(loader, directory / "exp")), expected, strict=True
    ):
        assert torch.equal(one, other)


def test_a_base_that_moved_can_be_named(trained, experiment, tmp_path):
    moved = shutil.copytree(trained[0] / "base", tmp_path / "moved")
    change(experiment, base="/gone")
    found = espnet2_lamer.load_model(experiment, base=moved)
    for one, other in zip(states(found.wav2vec2), trained[1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_goes_on_without_the_base(loader, experiment):
    change(experiment, base="/gone/base")
    with pytest.raises(RecipeError, match="encoder_conf.base: /gone/base: no such"):
        loader(experiment)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_accepts_a_random_backbone_in_its_place(loader, experiment):
    change(experiment, base=None, **ARCHITECTURE)
    with pytest.raises(RecipeError, match="lacks .* tensors .* needs the base"):
        loader(experiment)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_accepts_another_base(loader, experiment, other_base):
    change(experiment, base=other_base)
    # The mask embedding is the other difference between the two.
    with pytest.raises(RecipeError, match="trained on a base with SHA-256"):
        loader(experiment)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_forgets_experts_that_the_config_forgot(loader, experiment):
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    if not config["encoder_conf"]["lamer"]["allocation"]:
        change(experiment, lamer={"allocation": "2,4", "rank": 2})
        message = "lacks .* tensors of the encoder, e.g. .*feed_forward"
    else:
        change(experiment, lamer={"allocation": 0})
        message = "has .* tensors that the encoder lacks, e.g. .*feed_forward"
    with pytest.raises(RecipeError, match=message):
        loader(experiment)


@pytest.mark.parametrize("loader", LOADERS)
def test_an_exported_model_needs_no_base_in_any_loader(loader, trained, tmp_path):
    from espnet2_lamer.export.zoo import write_full_model

    directory, expected = trained
    write_full_model(directory / "exp", tmp_path / "full")
    settings = yaml.safe_load((tmp_path / "full/config.yaml").read_text())
    assert settings["encoder_conf"]["base"] is None
    for one, other in zip(
        states(load(loader, tmp_path / "full")), expected, strict=True
    ):
        assert torch.equal(one, other)


# -- classes of ESPnet's own, which know nothing of bases ----------------------


def stock(experiment):
    """ESPnet's HuBERT of the same architecture, in a config beside our weights."""
    from espnet2.tasks.hubert import HubertTask

    config = config_of(
        HubertTask,
        input_size=1,
        frontend=None,
        normalize=None,
        specaug=None,
        encoder="torchaudio_hubert",
        encoder_conf=ARCHITECTURE
        | {"extractor_mode": "layer_norm", "extractor_conv_bias": True}
        | {"encoder_layer_norm_first": True, "final_dim": 8},
        model="torchaudio",
    )
    write(experiment, config)


@pytest.mark.parametrize("loader", [espnets_task, s3prl_local])
def test_espnets_own_encoder_refuses_the_checkpoint_though_it_is_not_strict(
    loader, experiment
):
    stock(experiment)
    with pytest.raises(RuntimeError, match=r"size mismatch .*layer_norm.weight"):
        loader(experiment)


def test_without_the_guard_it_would_have_kept_random_weights(experiment):
    """Why the guard is there; fails when ESPnet begins to look at what is missing."""
    stock(experiment)
    path = files(experiment)[1]
    state = torch.load(path, weights_only=True)
    del state[f"encoder.{GUARD}"]
    torch.save(state, path)
    torch.manual_seed(1)
    one = states(espnets_task(experiment).encoder.hubert_pretrain_model.wav2vec2)
    torch.manual_seed(2)
    two = states(espnets_task(experiment).encoder.hubert_pretrain_model.wav2vec2)
    assert not torch.equal(one[0], two[0])


def test_an_asr_encoder_cannot_be_initialised_from_it(experiment):
    from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder
    from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

    class ASRModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = TorchAudioHuBERTPretrainEncoder(
                input_size=1, **ARCHITECTURE, num_classes=UNITS, final_dim=8
            )

    path = files(experiment)[1]
    with pytest.raises(RuntimeError, match="base_sha256"):
        load_pretrained_model(
            f"{path}:encoder:encoder", ASRModel(), ignore_init_mismatch=False
        )


def test_espnets_frontends_and_other_tasks_do_not_load_it(experiment):
    from espnet2.asr.frontend.espnet_ssl import ESPnetSSLFrontend
    from espnet2.tasks.asr import ASRTask

    config, path = files(experiment)
    with pytest.raises((AttributeError, KeyError, ValueError, RuntimeError)):
        ESPnetSSLFrontend(frontend_conf={"path_or_url": str(path)})
    with pytest.raises((AttributeError, KeyError, ValueError, RuntimeError)):
        ASRTask.build_model_from_file(config, path)


def test_a_plain_hubert_reader_names_the_experts(experiment):
    from espnet2_lamer.convert import load_hubert

    with pytest.raises(RecipeError, match="found LoRA experts, expected a plain"):
        load_hubert(Path(experiment))
