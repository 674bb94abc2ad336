import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.encoder import WhisperLoraEncoder
from espnet2_lamer.whisper.load import load_whisper
from tests.whisper.small_whisper import DIMS, plain_whisper


def test_a_file_gives_the_whisper_that_was_saved(whisper_file):
    model, expected = load_whisper(whisper_file), plain_whisper()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert not model.training


def test_an_unknown_name_lists_what_can_be_given():
    with pytest.raises(RecipeError, match="found 'bass', expected .*tiny.*large-v3"):
        load_whisper("bass")


def test_a_name_that_cannot_be_fetched_says_so():
    with pytest.raises(RecipeError, match="'base' is neither in .* give the path"):
        load_whisper("base")


@pytest.mark.parametrize("damage", ["bytes", "keys", "dims", "missing", "extra"])
def test_a_file_that_is_no_whisper_is_refused(whisper_file, tmp_path, damage):
    path = tmp_path / "whisper.pt"
    checkpoint = torch.load(whisper_file)
    state = checkpoint["model_state_dict"]
    if damage == "keys":
        checkpoint = state
    elif damage == "dims":
        del checkpoint["dims"]["n_mels"]
    elif damage == "missing":
        del state["decoder.ln.weight"], state["encoder.conv1.bias"]
    elif damage == "extra":
        state["decoder.more"] = state["encoder.more"] = torch.zeros(1)
    torch.save(checkpoint, path)
    if damage == "bytes":
        path.write_bytes(b"nothing")
    with pytest.raises(RecipeError, match=r"whisper\.pt"):
        load_whisper(path)
    with pytest.raises(RecipeError, match=r"encoder_conf\.whisper: .*whisper\.pt"):
        WhisperLoraEncoder(whisper=str(path))


def test_an_english_only_whisper_is_refused():
    with pytest.raises(RecipeError, match=r"English-only model \(51864"):
        WhisperLoraEncoder(dims=DIMS | {"n_vocab": 51864})
    with pytest.raises(RecipeError, match=r"encoder_conf\.whisper: found null"):
        WhisperLoraEncoder()
