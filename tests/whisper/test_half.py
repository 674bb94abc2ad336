import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.encoder import WhisperLoraEncoder
from espnet2_lamer.whisper.half import read_half
from tests.whisper.small_whisper import DIMS, plain_whisper


def test_a_file_gives_the_whisper_that_was_saved(whisper_file):
    expected = plain_whisper().state_dict()
    for side in ("encoder", "decoder"):
        half, dims, _ = read_half(side, str(whisper_file), None)
        assert dims == DIMS
        for name, value in half.state_dict().items():
            assert torch.equal(value, expected[f"{side}.{name}"]), name


def test_an_unknown_name_lists_what_can_be_given():
    with pytest.raises(RecipeError, match="found 'bass', expected .*tiny.*large-v3"):
        read_half("encoder", "bass", None)


def test_a_name_that_cannot_be_fetched_says_so():
    with pytest.raises(RecipeError, match="'base' is neither in .* give the path"):
        read_half("encoder", "base", None)


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
    with pytest.raises(RecipeError, match=r"encoder_conf\.whisper: .*whisper\.pt"):
        WhisperLoraEncoder(whisper=str(path))


def test_an_english_only_whisper_is_refused():
    with pytest.raises(RecipeError, match=r"English-only model \(51864"):
        WhisperLoraEncoder(dims=DIMS | {"n_vocab": 51864})
    with pytest.raises(RecipeError, match=r"encoder_conf\.whisper: found null"):
        WhisperLoraEncoder()
