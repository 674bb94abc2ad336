"""S3PRL upstreams look like ours: states, frames, frozen, usable by a head."""

import pytest
import torch

from espnet2_lamer import load_model
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.feature_store import upstream_fingerprint
from espnet2_lamer.fileio.trust import trusting_s3prl_files
from espnet2_lamer.tasks.upstream_frontend import LamerUpstreamFrontend
from espnet2_lamer.upstream import build_upstream
from tests.tiny_hubert import ARCHITECTURE

pytestmark = pytest.mark.slow  # S3PRL takes seconds to import


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    model = build_hubert(ARCHITECTURE)
    directory = tmp_path_factory.mktemp("hubert")
    save_huggingface(model, directory)
    return directory


def noise(*samples):
    generator = torch.Generator().manual_seed(1)
    wavs = torch.zeros(len(samples), max(samples))
    for row, count in zip(wavs, samples, strict=True):
        row[:count] = torch.randn(count, generator=generator)
    return wavs, torch.tensor(samples)


def test_states_are_those_of_our_loader_up_to_the_last(directory):
    theirs, ours = (
        load_model(f"s3prl:hf_hubert_custom:{directory}", trust_s3prl_files=True),
        load_model(directory),
    )
    assert (theirs.num_layers, theirs.dim, theirs.hop) == (2, 16, 320)
    wavs, lengths = noise(16000, 9999)
    with trusting_s3prl_files(True):
        found = LamerUpstreamFrontend(f"s3prl:hf_hubert_custom:{directory}", layer=1)
    expected = LamerUpstreamFrontend(directory, layer=1)
    for frontend in (found, expected):
        frontend.train()
    states, frames = found(wavs, lengths)
    want, want_frames = expected(wavs, lengths)
    assert frames.tolist() == want_frames.tolist() == [50, 32]
    # Hugging Face normalises waveforms with another epsilon.
    torch.testing.assert_close(states, want, rtol=1e-3, atol=1e-4)
    assert torch.equal(states, found(wavs, lengths)[0])
    assert not any(p.requires_grad for p in found.upstream.parameters())
    assert not any(m.training for m in found.upstream.modules())
    assert upstream_fingerprint(theirs) != upstream_fingerprint(ours)


def test_it_is_built_again_from_its_architecture_and_weights(directory):
    source = f"s3prl:hf_hubert_custom:{directory}"
    first = load_model(source, trust_s3prl_files=True)
    with pytest.raises(RecipeError, match="--trust_s3prl_files true"):
        LamerUpstreamFrontend(upstream_conf=first.architecture(), layer="all")
    with trusting_s3prl_files(True):
        frontend = LamerUpstreamFrontend(
            upstream_conf=first.architecture(), layer="all"
        )
        again = build_upstream(first.architecture())
    weights = {f"upstream.{k}": v for k, v in first.state_dict().items()}
    frontend.load_state_dict(weights | {"layer_sum.weights": torch.zeros(3)})
    assert upstream_fingerprint(again) == upstream_fingerprint(first)


def test_filter_banks_have_their_own_frame_shift():
    fbank = load_model("s3prl:fbank")
    assert (fbank.num_layers, fbank.hop) == (0, 160)
    frontend = LamerUpstreamFrontend("s3prl:fbank", layer=0)
    wavs, lengths = noise(16000, 8001)
    states, frames = frontend(wavs, lengths)
    assert frames.tolist() == [100, 51]
    assert states.shape == (2, 100, fbank.dim)
    assert states[1, 51:].abs().sum() == 0


def test_an_unknown_name_or_checkpoint_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="S3PRL has no upstream 'nonesuch'"):
        load_model("s3prl:nonesuch")
    with pytest.raises(RecipeError, match="S3PRL cannot load it"):
        load_model(f"s3prl:hf_hubert_custom:{tmp_path}", trust_s3prl_files=True)
