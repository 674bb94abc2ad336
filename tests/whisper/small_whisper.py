"""A Whisper of 32 dimensions with random weights, and models of this package on it."""

import contextlib

import torch
from espnet2.asr.ctc import CTC
from whisper.model import ModelDimensions, Whisper

from espnet2_lamer.whisper.decoder import WhisperLoraDecoder
from espnet2_lamer.whisper.encoder import WhisperLoraEncoder
from espnet2_lamer.whisper.lora import expert_linears
from espnet2_lamer.whisper.model import WhisperLoraModel
from espnet2_lamer.whisper.text import token_list

DIMS = {
    "n_mels": 80,
    "n_audio_ctx": 1500,
    "n_audio_state": 32,
    "n_audio_head": 2,
    "n_audio_layer": 3,
    "n_vocab": 51865,
    "n_text_ctx": 48,
    "n_text_state": 32,
    "n_text_head": 2,
    "n_text_layer": 2,
}
MEDIUM = {
    "n_mels": 80,
    "n_audio_ctx": 1500,
    "n_audio_state": 1024,
    "n_audio_head": 16,
    "n_audio_layer": 24,
    "n_vocab": 51865,
    "n_text_ctx": 448,
    "n_text_state": 1024,
    "n_text_head": 16,
    "n_text_layer": 24,
}
LANGUAGES = ("eng", "cmn", "yue")


def plain_whisper(seed=0, **dims):
    torch.manual_seed(seed)
    model = Whisper(ModelDimensions(**(DIMS | dims))).eval()
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.1)
    # Sharper than random: texts of different audio differ.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("key.weight", "query.weight")):
                parameter.mul_(4.0)
    return model


def save_whisper(path, seed=0, **dims):
    model = plain_whisper(seed, **dims)
    torch.save({"dims": DIMS | dims, "model_state_dict": model.state_dict()}, path)
    return path


def make_model(file, method="experts", seed=0, device=None, model_conf=None, **lora):
    """Build a model on the Whisper in ``file``, or of these dims on a device."""
    torch.manual_seed(seed)
    lora = {"method": method, "rank": 4, "student_rank": 6, "shared_layers": 2} | lora
    if "languages" not in lora:
        lora["languages"] = LANGUAGES
    source = {"whisper": str(file)} if device is None else {"dims": file}
    with torch.device(device) if device else contextlib.nullcontext():
        encoder = WhisperLoraEncoder(lora=lora, **source)
        decoder = WhisperLoraDecoder(
            vocab_size=encoder.dims["n_vocab"],
            encoder_output_size=encoder.output_size(),
            lora=lora,
            **source,
        )
    tokens = list(token_list(encoder.dims["n_vocab"]))
    return WhisperLoraModel(
        vocab_size=len(tokens),
        token_list=tokens,
        frontend=None,
        specaug=None,
        normalize=None,
        preencoder=None,
        encoder=encoder,
        postencoder=None,
        decoder=decoder,
        ctc=CTC(odim=2, encoder_output_size=1),
        joint_network=None,
        **(model_conf or {}),
    ).eval()


@torch.no_grad()
def stir(model, seed=1, size=0.3):
    """Give every LoRA other values, as training does, and return the model."""
    generator = torch.Generator().manual_seed(seed)
    for half in (model.encoder, model.decoder):
        for linear in expert_linears(half).values():
            for expert in linear.experts.values():
                for tensor in (expert.lora_A, expert.lora_B):
                    noise = torch.randn(tensor.shape, generator=generator)
                    tensor.add_(size * noise)
    return model


def speech(*seconds, seed=2):
    """Noise of given lengths in one batch, with other noise as padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([round(16000 * s) for s in seconds])
    waves = torch.randn(len(seconds), int(lengths.max()), generator=generator)
    envelope = torch.linspace(0.2, 1.0, waves.shape[1])
    return waves * envelope * 0.1, lengths


def text(*counts, seed=3):
    """Random text tokens of given numbers, padded with -1."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(counts)
    tokens = torch.randint(1000, 20000, (len(counts), max(counts)), generator=generator)
    return tokens.masked_fill(
        torch.arange(max(counts)) >= lengths[:, None], -1
    ), lengths


def batch(languages=(0, 1, 2), seconds=(0.6, 0.4, 0.5), counts=(4, 3, 5)):
    waves, wave_lengths = speech(*seconds)
    tokens, token_lengths = text(*counts)
    return {
        "speech": waves,
        "speech_lengths": wave_lengths,
        "text": tokens,
        "text_lengths": token_lengths,
        "lang": torch.tensor(languages)[:, None],
        "utt_id": [f"u{i}" for i in range(len(languages))],
    }
