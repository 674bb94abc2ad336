"""The S3PRL door: the same states to the bit, from the hub and from a checkout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import espnet2_lamer
from espnet2_lamer.asr.frontend.states import stretch_to_grid
from espnet2_lamer.bin.export import main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.s3prl import write_s3prl
from espnet2_lamer.s3prl_hub.lamer_ssl.hubconf import lamer_ssl_local
from tests.export.family import (
    GROUP_NORM,
    build,
    fresh_process,
    padded,
    speech,
    write_experiment,
)


@pytest.fixture(scope="module", params=["layer_norm", "group_norm"])
def exported(tmp_path_factory, request):
    """An exported model whose experiment and base are gone, and its states."""
    root = tmp_path_factory.mktemp("s3prl")
    changes = GROUP_NORM if request.param == "group_norm" else {}
    experiment = write_experiment(root, **changes)
    model = espnet2_lamer.load_model(experiment)
    main(["--kind=s3prl", f"--experiment={experiment}", f"--output={root / 'out'}"])
    shutil.rmtree(experiment)
    shutil.rmtree(root / "base")
    return root / "out", model


def on_grid(model, waves):
    """What S3PRL is to get: ceil(samples / 320) frames, the last one repeated."""
    wavs, lengths = padded(waves)
    states, frames = model.extract_features(wavs, lengths)
    return [stretch_to_grid(state, frames, lengths)[0] for state in states]


def test_the_expert_gives_the_models_states_on_s3prls_grid(exported):
    directory, model = exported
    expert = lamer_ssl_local(str(directory / "model.pth"), model_config=None)
    assert expert.get_downsample_rates("hidden_states") == 320
    expert.train()
    assert not any(m.training for m in expert.model.modules())
    found = expert(speech())["hidden_states"]
    expected = on_grid(model, speech())
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (3, 10, 16)
        assert torch.equal(one, other)
    # An utterance does not depend on its batch; its last frame fills the grid.
    for row, wave in enumerate(speech()):
        (alone,) = expert([wave])["hidden_states"][2]
        count = -(-len(wave) // 320)
        assert len(alone) == count
        torch.testing.assert_close(found[2][row, :count], alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(alone[-1], alone[-2])
    whole = lamer_ssl_local(str(directory))(speech())["hidden_states"]
    assert all(map(torch.equal, whole, expected))


def test_an_utterance_without_a_frame_is_refused_by_its_place(exported):
    expert = lamer_ssl_local(str(exported[0]))
    for counts in ([16000, 200], [399, 16000]):
        with pytest.raises(RecipeError, match=f"of 2 has {min(counts)} samples"):
            expert([torch.randn(count) for count in counts])


def test_no_path_of_the_training_is_left(exported):
    directory, _ = exported
    for name in ("config.yaml", "README.md"):
        assert str(directory.parent) not in (directory / name).read_text()


def test_a_packed_zip_is_a_source_and_a_checkpoint(exported, tmp_path):
    from espnet2_lamer.export.zoo import pack_model

    directory, model = exported
    pack_model(
        "ssl", directory / "config.yaml", directory / "model.pth", tmp_path / "m.zip"
    )
    expected = on_grid(model, speech())
    write_s3prl(tmp_path / "m.zip", tmp_path / "out")
    for checkpoint in (tmp_path / "m.zip", tmp_path / "out" / "model.pth"):
        found = lamer_ssl_local(str(checkpoint))(speech())["hidden_states"]
        assert all(map(torch.equal, found, expected))


def test_another_base_place_and_epoch_can_be_named(tmp_path):
    experiment = write_experiment(tmp_path)
    expected = on_grid(espnet2_lamer.load_model(experiment), speech())
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    (experiment / "valid.loss.best.pth").rename(experiment / "7epoch.pth")
    write_s3prl(experiment, tmp_path / "out", "7epoch.pth", tmp_path / "elsewhere")
    found = lamer_ssl_local(str(tmp_path / "out"))(speech())["hidden_states"]
    assert all(map(torch.equal, found, expected))
    epoch = espnet2_lamer.load_model(
        experiment / "7epoch.pth", base=tmp_path / "elsewhere"
    )
    assert all(map(torch.equal, on_grid(epoch, speech()), expected))


def test_what_is_no_pretraining_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("encoder: conformer\n")
    with pytest.raises(RecipeError, match="found 'conformer', expected 'lamer_hubert'"):
        write_s3prl(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="nowhere not found"):
        lamer_ssl_local(str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="a directory that no export wrote"):
        write_s3prl(tmp_path, Path(__file__).parent)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """An S3PRL checkout made of links, which a new upstream can be put into."""
    import importlib.util

    installed = Path(importlib.util.find_spec("s3prl").origin).parent
    root = tmp_path_factory.mktemp("checkout")
    package = root / "s3prl"
    (package / "upstream").mkdir(parents=True)
    for path in [*installed.iterdir(), *(installed / "upstream").iterdir()]:
        target = package / path.relative_to(installed)
        if path.name not in ("upstream", "hub.py", "__pycache__"):
            target.symlink_to(path)
    shutil.copy(installed / "hub.py", package / "hub.py")
    return package


BELOW = [400, 639, 641, 799]
# Without the upstream put into the checkout, S3PRL does not know it.
IN_S3PRL = """
import numpy, torch
if given["registered"]:
    import espnet2_lamer
    espnet2_lamer.register(s3prl=True)
else:
    # What an S3PRL of today's torchaudio would do itself.
    from espnet2_lamer.compat import patch_torchaudio_for_s3prl
    patch_torchaudio_for_s3prl()
from s3prl.nn import S3PRLUpstream

waves = [torch.from_numpy(numpy.load(f"wave{row}.npy")) for row in range(3)]
lengths = torch.tensor([len(wave) for wave in waves])
wavs = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
arrays = {}
for name in given["names"]:
    model = S3PRLUpstream(name, "out/model.pth").train()
    assert set(model.downsample_rates) == {320}
    with torch.no_grad():
        # S3PRL fills a batch below 50 ms with zeros; the states do not show it.
        below = [
            model(wav[None], torch.tensor([n]))[0]
            for n in given["below"]
            for wav in [waves[0][:n]]
        ]
        pair = model(wavs[:2, :700], torch.tensor([500, 700]))[0]
        states, frames = model(wavs, lengths)
        alone = [model(w[None], torch.tensor([len(w)]))[0] for w in waves]
    for k, state in enumerate(states):
        arrays[f"{name}/batch/{k}"] = state.numpy()
        arrays[f"{name}/pair/{k}"] = pair[k].numpy()
        for n, found in zip(given["below"], below, strict=True):
            arrays[f"{name}/{n}/{k}"] = found[k].numpy()
        for row in range(3):
            arrays[f"{name}/single{row}/{k}"] = alone[row][k].numpy()
numpy.savez("states.npz", **arrays)
import s3prl
answer = [model.num_layers, frames[0].tolist(), s3prl.__file__]
"""


@pytest.mark.slow
@pytest.mark.parametrize("door", ["registered", "checkout"])
def test_s3prl_gives_the_models_states_to_the_bit(exported, checkout, tmp_path, door):
    directory, model = exported
    shutil.copytree(directory, tmp_path / "out")
    for row, wave in enumerate(speech()):
        np.save(tmp_path / f"wave{row}.npy", wave.numpy())
    path, names = [], ["lamer_ssl_local", "lamer_ssl_custom"]
    if door == "checkout":
        # The two commands of the README that the export writes.
        target = checkout / "upstream" / "lamer_ssl"
        shutil.copytree(
            directory / "upstream" / "lamer_ssl", target, dirs_exist_ok=True
        )
        with open(checkout / "hub.py", "a") as hub:
            hub.write("from s3prl.upstream.lamer_ssl.hubconf import *\n")
        path = [checkout.parent]
    layers, frames, where = fresh_process(
        IN_S3PRL,
        tmp_path,
        path=path,
        names=names,
        below=BELOW,
        registered=door == "registered",
    )
    assert layers == 3 and frames == [10, 7, 2]
    assert (str(checkout) in where) == (door == "checkout")
    arrays = np.load(tmp_path / "states.npz")
    long = speech()[0]
    expected = {n: on_grid(model, [long[:n]]) for n in BELOW}
    expected["pair"] = on_grid(model, [speech()[0][:500], speech()[1][:700]])
    for label, states in expected.items():
        for k in range(3):
            for name in names:
                found = arrays[f"{name}/{label}/{k}"]
                assert np.array_equal(found, states[k].numpy()), (label, k)
    batch = on_grid(model, speech())
    for row, wave in enumerate(speech()):
        alone = on_grid(model, [wave])
        for k in range(3):
            for name in names:
                found = arrays[f"{name}/batch/{k}"]
                assert np.array_equal(found[row], batch[k][row].numpy())
                single = arrays[f"{name}/single{row}/{k}"][0]
                count = len(single)
                assert count == frames[row]
                assert np.array_equal(single, alone[k][0, :count].numpy())


@pytest.mark.slow
def test_espnet_hubert_of_s3prl_reads_it_too_one_index_lower(exported, tmp_path):
    directory, model = exported
    shutil.copytree(directory, tmp_path / "out")
    for row, wave in enumerate(speech()):
        np.save(tmp_path / f"wave{row}.npy", wave.numpy())
    names = ["espnet_hubert_local", "espnet_hubert_custom"]
    layers, _, _ = fresh_process(
        IN_S3PRL, tmp_path, names=names, below=[], registered=True
    )
    assert layers == 2
    arrays = np.load(tmp_path / "states.npz")
    model.final_norm = False
    for row, wave in enumerate(speech()[:2]):
        states, _ = model.extract_features(*padded([wave]))
        for k in (1, 2):
            for name in names:
                found = arrays[f"{name}/single{row}/{k - 1}"][0]
                count = states[k].shape[1]
                assert np.array_equal(found[:count], states[k][0].numpy())
    wavs, lengths = padded(speech())
    if model.wav2vec2.extractor_mode == "layer_norm":
        # Group norm sees padding there: batches of one length only.
        states, frames = model.extract_features(wavs, lengths)
        for row, count in enumerate(frames.tolist()):
            found = arrays[f"espnet_hubert_local/batch/{0}"][row, :count]
            assert np.array_equal(found, states[1][row, :count].numpy())
    model.final_norm = True


@pytest.mark.slow
def test_the_exported_model_is_a_frontend_of_espnets_own(exported, monkeypatch):
    from espnet2.asr.frontend.s3prl import S3prlFrontend

    directory, model = exported
    espnet2_lamer.register(s3prl=True)
    frontend = S3prlFrontend(
        frontend_conf={
            "upstream": "lamer_ssl_local",
            "path_or_url": str(directory / "model.pth"),
        },
        multilayer_feature=False,
        layer=1,
    )
    wavs, lengths = padded(speech()[:2])
    found, frames = frontend(wavs, lengths)
    assert frames.tolist() == [10, 7]
    expected = on_grid(model, speech()[:2])[1]
    assert torch.equal(found, expected)


def test_a_plain_hubert_has_this_door_as_well(tmp_path):
    from espnet2_lamer.convert.huggingface import save_huggingface

    save_huggingface(build().wav2vec2, tmp_path / "hubert")
    model = espnet2_lamer.load_model(tmp_path / "hubert")
    found = lamer_ssl_local(str(tmp_path / "hubert"))(speech())["hidden_states"]
    assert all(map(torch.equal, found, on_grid(model, speech())))
