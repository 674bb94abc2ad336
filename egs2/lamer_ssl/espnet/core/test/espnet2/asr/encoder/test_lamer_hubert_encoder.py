import pytest
import torch

from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder
from espnet2.asr.encoder.lamer_hubert_encoder import LamerHubertPretrainEncoder

SIZES = dict(
    input_size=1,
    extractor_conv_layer_config=[[4, 10, 5], [4, 3, 2]],
    encoder_embed_dim=8,
    encoder_pos_conv_kernel=4,
    encoder_pos_conv_groups=2,
    encoder_num_layers=2,
    encoder_num_heads=2,
    encoder_ff_interm_features=16,
    encoder_layer_drop=0.0,
    num_classes=5,
    final_dim=4,
)
LAMER = {"allocation": "2,3", "rank": 2}


def make_batch(encoder):
    lengths = torch.tensor([400, 300])
    frames = int(encoder.frame_lengths(lengths).max())
    return torch.randn(2, 400), lengths, torch.randint(0, 5, (2, frames))


@pytest.mark.parametrize("normalize_waveform", [True, False])
def test_only_experts_and_head_train(normalize_waveform):
    encoder = LamerHubertPretrainEncoder(
        lamer=LAMER, normalize_waveform=normalize_waveform, **SIZES
    )
    logit_m, logit_u, _ = encoder(*make_batch(encoder))
    (logit_m[:, :1].sum() + logit_u[:, :1].sum()).backward()
    for name, parameter in encoder.named_parameters():
        trains = "wav2vec2" not in name or "lora_" in name or "routers" in name
        assert (parameter.grad is not None) == trains, name


@pytest.mark.parametrize("of_torchaudio", [True, False])
def test_base_is_loaded_from_either_form(tmp_path, of_torchaudio):
    base = TorchAudioHuBERTPretrainEncoder(**SIZES).eval()
    wav2vec2 = base.hubert_pretrain_model.wav2vec2
    state = {f"encoder.{key}": value for key, value in base.state_dict().items()}
    torch.save(wav2vec2.state_dict() if of_torchaudio else state, tmp_path / "base.pth")
    encoder = LamerHubertPretrainEncoder(
        lamer=LAMER, base=str(tmp_path / "base.pth"), **SIZES
    ).eval()
    x, lengths, _ = make_batch(encoder)
    model = encoder.hubert_pretrain_model
    torch.testing.assert_close(model.wav2vec2(x, lengths), wav2vec2(x, lengths))
    assert model.mask_generator.mask_embedding.requires_grad == of_torchaudio
    encoder.reload_pretrained_parameters()


@pytest.mark.parametrize("sizes", [{"encoder_num_layers": 1}, {"encoder_embed_dim": 4}])
def test_base_of_other_sizes_is_refused(tmp_path, sizes):
    base = TorchAudioHuBERTPretrainEncoder(**{**SIZES, **sizes})
    state = base.hubert_pretrain_model.wav2vec2.state_dict()
    torch.save(state, tmp_path / "base.pth")
    with pytest.raises(ValueError, match="sizes of this HuBERT"):
        LamerHubertPretrainEncoder(
            lamer=LAMER, base=str(tmp_path / "base.pth"), **SIZES
        )


def test_normalized_waveform_ignores_padding_and_gain():
    encoder = LamerHubertPretrainEncoder(normalize_waveform=True, **SIZES).eval()
    x, lengths, y = make_batch(encoder)
    torch.manual_seed(0)
    expected = encoder(x, lengths, y)[0]
    x[1, 300:] = 9.0
    torch.manual_seed(0)
    found = encoder(3 * x, lengths, y)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
