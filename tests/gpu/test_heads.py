"""Heads on a GPU: trained on stored features or with the upstream, and decoded."""

import shutil

import pytest
import torch
import yaml

from espnet2_lamer.evaluation import downstream, head_decoding
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.upstream import load_model
from tests.evaluation.tiny_head import CONFIG, GREEDY, write_set

SHORT = CONFIG | {"max_epoch": 1, "num_iters_per_epoch": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("head")
    write_set(root / "train", "train", 6, 1)
    write_set(root / "dev", "dev", 3, 2)
    return root


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "lamer_upstream"])
def test_a_head_trains_resumes_and_decodes_there_as_on_the_cpu(
    gpu, hubert_dirs, data, tmp_path, stored
):
    config = tmp_path / "head.yaml"
    options = downstream.HeadOptions(ngpu=1, feature_store_gb=9 if stored else 1e-9)

    def train(source):
        return downstream.train_head(
            *(load_model(source), data / "train", data / "dev", tmp_path / "store"),
            *(tmp_path / "exp", config, options),
            source=source,
        )

    source = str(hubert_dirs["layer_norm"])
    with gpu():
        config.write_text(yaml.safe_dump(SHORT))
        train(source)
        # As if it had been killed after its first epoch of two.
        shutil.rmtree(tmp_path / "exp/final")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(downstream, "made_from", lambda path, *_: path.is_file())
            config.write_text(yaml.safe_dump(SHORT | {"max_epoch": 2}))
            final = train(source)
        log = (tmp_path / "exp/train.log").read_text()
        assert "The training was resumed" in log and "2epoch results" in log
        found = decode(final, data, tmp_path / "gpu", GREEDY, "cuda")
    trained = yaml.safe_load((tmp_path / "exp/config.yaml").read_text())
    assert trained["frontend"] == ("stored_features" if stored else "lamer_upstream")
    expected = decode(final, data, tmp_path / "cpu", GREEDY, "cpu")
    assert found.keys() == expected.keys()
    # A near tie may fall otherwise on a real device.
    assert sum(found[utt] != expected[utt] for utt in expected) <= 1
    weights = torch.load(final / "model.pth", weights_only=True)
    assert {value.device.type for value in weights.values()} == {"cpu"}


@pytest.mark.slow
def test_espnets_own_search_runs_there(gpu, hubert_dirs, data, tmp_path):
    source = str(hubert_dirs["layer_norm"])
    config = tmp_path / "head.yaml"
    config.write_text(yaml.safe_dump(SHORT))
    final = downstream.train_head(
        *(load_model(source), data / "train", data / "dev", tmp_path / "store"),
        *(tmp_path / "exp", config),
    )
    options = GREEDY | {"beam_size": 2}
    expected = decode(final, data, tmp_path / "cpu", options, "cpu")
    with gpu():
        found = decode(final, data, tmp_path / "gpu", options, "cuda")
    assert found.keys() == expected.keys()
    assert sum(found[utt] != expected[utt] for utt in expected) <= 1


def decode(final, data, output, options, device):
    output.mkdir()
    (output / "decode.yaml").write_text(yaml.safe_dump(options))
    (text,) = head_decoding.decode(
        final, data / "dev/wav.scp", {output: False}, output / "decode.yaml", device
    )
    return read_table(text)
