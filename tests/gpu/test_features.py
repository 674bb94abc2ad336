"""Extraction, teacher features, k-means, labels and the report, computed on a GPU."""

import numpy as np
import pytest
import torch

from espnet2_lamer.bin import assign_units, dump_features, extract, learn_kmeans
from espnet2_lamer.upstream import load_model


def run(command, *options):
    command.main([str(option) for option in options])


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
def test_states_of_a_batch_are_those_of_the_cpu(gpu, hubert_dirs, mode):
    hubert_dir = hubert_dirs[mode]
    torch.manual_seed(0)
    wavs, lengths = torch.randn(2, 4000), torch.tensor([4000, 3000])
    expected, frames = load_model(hubert_dir).extract_features(wavs, lengths)
    with gpu():
        model = load_model(hubert_dir).to("cuda")
        states, found = model.extract_features(wavs.to("cuda"), lengths.to("cuda"))
        assert {x.device.type for x in [*states, found]} == {"cuda"}
        states, found = [state.cpu() for state in states], found.cpu()
    assert torch.equal(found, frames)
    for ours, theirs in zip(states, expected, strict=True):
        for row, count in enumerate(frames.tolist()):
            torch.testing.assert_close(
                ours[row, :count], theirs[row, :count], rtol=1e-3, atol=1e-3
            )


def test_units_and_features_are_those_of_the_cpu(gpu, hubert_dirs, corpus, tmp_path):
    model = hubert_dirs["layer_norm"]
    teacher = ["--teacher", model]
    speech = ["--wav_scp", corpus / "wav.scp"]

    def make(device):
        place, here = ["--device", device], tmp_path / device
        run(
            dump_features,
            *teacher,
            *speech,
            *place,
            *("--layer", 2, "--output", here / "features"),
        )
        run(
            learn_kmeans,
            *("--features", here / "features", "--output", here / "codebook.npz"),
            *("--n_clusters", 5, "--n_init", 2, *place),
        )
        # Both with the codebook of the CPU, which is there by then.
        codebook = ["--codebook", tmp_path / "cpu/codebook.npz"]
        output = ["--output", here / "text.km"]
        run(assign_units, *teacher, *speech, *place, *codebook, *output)
        output = ["--output", here / "states.npz"]
        run(extract, "--model", model, *speech, *place, "--layer", "all", *output)

    make("cpu")
    with gpu():
        make("cuda")
    one, other = (np.load(tmp_path / d / "states.npz") for d in ("cpu", "cuda"))
    assert sorted(one) == sorted(other)
    for utt in one:
        np.testing.assert_allclose(other[utt], one[utt], rtol=1e-3, atol=1e-3)
    units = [(tmp_path / d / "text.km").read_text().split() for d in ("cpu", "cuda")]
    same = np.mean([a == b for a, b in zip(*units, strict=True)])
    # Frames between two centroids may fall to the other one.
    assert same > 0.99
    one, other = (np.load(tmp_path / d / "codebook.npz") for d in ("cpu", "cuda"))
    np.testing.assert_allclose(other["centroids"], one["centroids"], atol=0.05)


@pytest.mark.slow
def test_the_report_of_a_model_is_that_of_the_cpu(gpu, tmp_path_factory):
    from espnet2_lamer.analysis.listening import read_speech_set
    from espnet2_lamer.analysis.report import report_on
    from tests.bin.test_analyze import LAMER, build, write_tones

    data = write_tones(tmp_path_factory.mktemp("tones"))
    names = {"model": "exp", "base": "the/base"}

    def report(device):
        speech = read_speech_set(data)
        return report_on(build(LAMER), build(), speech, [1, 2], names, device)

    expected = report("cpu")
    with gpu():
        found = report("cuda")
    assert found.keys() == expected.keys()
    assert found["notes"] == expected["notes"]
