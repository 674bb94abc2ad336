"""A torchaudio HuBERT of 2 layers x 16 values, and experts that are not zero."""

import pytest
import torch
from torchaudio.models import wav2vec2_model

from espnet2_lamer.layers.experts import LoRAExperts


def _tiny_hubert(layers=2, dim=16, ffn=32):
    torch.manual_seed(0)
    return wav2vec2_model(
        extractor_mode="layer_norm",
        extractor_conv_layer_config=[[8, 10, 5], [8, 8, 8], [8, 4, 4], [8, 2, 2]],
        extractor_conv_bias=True,
        encoder_embed_dim=dim,
        encoder_projection_dropout=0.0,
        # Odd: with bf16 and few channels a group, even kernels are wrong on some CPUs.
        encoder_pos_conv_kernel=7,
        encoder_pos_conv_groups=2,
        encoder_num_layers=layers,
        encoder_num_heads=2,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=ffn,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=True,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()


def _fill_experts(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, LoRAExperts):
                noise = torch.randn(child.lora_B.shape, generator=generator)
                child.lora_B.copy_(0.3 * noise)
    return module


@pytest.fixture
def tiny_hubert():
    """Return a function that builds the model, each time with the same weights."""
    return _tiny_hubert


@pytest.fixture
def fill_experts():
    """Return a function that gives every B matrix seeded random values."""
    return _fill_experts
