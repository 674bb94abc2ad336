"""Whisper with LoRA on a GPU: a training step of every method, and decoding."""

import pytest
import torch
from espnet2.torch_utils.device_funcs import to_device

from espnet2_lamer.whisper.transcription import transcribe
from tests.whisper.small_whisper import batch, make_model, save_whisper, speech, stir

METHODS = {
    "experts": {"train_language": "eng"},
    "mole": {},
    "student": {},
    "multilingual": {},
    "full": {},
}


@pytest.fixture(scope="module")
def whisper_file(tmp_path_factory):
    return save_whisper(tmp_path_factory.mktemp("whisper") / "small.pt")


@pytest.mark.parametrize(
    "method",
    [
        "mole",
        *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "mole"),
    ],
)
def test_a_training_step_has_the_gradients_of_the_cpu(gpu, whisper_file, method):
    languages = (0, 0, 0) if method == "experts" else (0, 1, 2)

    def step(device):
        model = make_model(whisper_file, method, **METHODS[method]).to(device)
        loss, _, _ = model.train()(**to_device(batch(languages), device))
        loss.backward()
        gradients = {
            name: p.grad.cpu()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
        return loss.item(), gradients

    expected, gradients = step("cpu")
    with gpu():
        found, other = step("cuda")
    assert found == pytest.approx(expected, rel=1e-3)
    assert other.keys() == gradients.keys() and gradients
    for name, value in gradients.items():
        torch.testing.assert_close(other[name], value, rtol=0.02, atol=1e-3)


def test_a_batch_is_written_down_as_on_the_cpu(gpu, whisper_file):
    waves, lengths = speech(0.6, 0.4)

    def texts(device):
        model = stir(make_model(whisper_file, "mole")).to(device)
        waves_there, lengths_there = waves.to(device), lengths.to(device)
        given = transcribe(model, waves_there, lengths_there, ["eng", "cmn"], 5)
        found = transcribe(model, waves_there, lengths_there, None, 5)
        return given.tokens, found.tokens, found.languages

    expected = texts("cpu")
    with gpu() as pretended:
        found = texts("cuda")
    if pretended:
        assert found == expected
    assert [len(x) for x in found] == [2, 2, 2]
