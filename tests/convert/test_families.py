"""Every family's checkpoints give transformers' states, in either form."""

import logging

import pytest
import torch

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert import fairseq2, load_hubert
from espnet2_lamer.convert.families import FAMILIES
from espnet2_lamer.convert.huggingface import save_huggingface
from espnet2_lamer.convert.relative_attention import distance_buckets
from espnet2_lamer.errors import RecipeError
from tests import families

LENGTHS = (8000, 5200, 400)
BUCKETS = {"num_buckets": 320, "max_bucket_distance": 800}
#: Kind, width, layers and heads of published sizes; those above 24 layers are cut.
SIZES = {
    "wav2vec2-base": ("wav2vec2-base", 768, 12, 12, {}),
    "xls-r-300m": ("wav2vec2-large", 1024, 4, 16, {}),
    "xls-r-1b": ("wav2vec2-large", 1280, 2, 16, {}),
    "xls-r-2b": ("wav2vec2-large", 1920, 2, 16, {}),
    "data2vec-audio-base": (
        "data2vec",
        *(768, 12, 12),
        {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19},
    ),
    "wavlm-base": ("wavlm-base", 768, 12, 12, BUCKETS),
    "wavlm-large": ("wavlm-large", 1024, 4, 16, BUCKETS),
}


def true_sizes(width, layers, heads, more):
    """Options of a transformers' config with everything as published."""
    return {
        "conv_dim": [512] * 7,
        "num_conv_pos_embedding_groups": 16,
        "num_conv_pos_embeddings": 128,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        **more,
    }


def speech(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [0.3 * torch.randn(n, generator=generator) + 0.1 for n in lengths]


def largest_difference(source, model, normalizes):
    """Between our states of a padded batch and transformers' of each utterance."""
    waves = speech()
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    batch = batch.masked_fill(batch == 0, torch.nan)
    upstream = Upstream(load_hubert(source))
    states, frames = upstream.extract_features(
        batch, torch.tensor([len(wave) for wave in waves])
    )
    expected = families.reference_states(model, waves, normalizes)
    worst = 0.0
    for row, (count, (*inner, _, last)) in enumerate(
        zip(frames.tolist(), expected, strict=True)
    ):
        for ours, theirs in zip(states, [*inner, last], strict=True):
            assert theirs.shape[1] == count
            worst = max(worst, float((ours[row, :count] - theirs[0]).abs().max()))
    return worst


@pytest.mark.parametrize("form", ["transformers", "head", "fairseq"])
@pytest.mark.parametrize("kind", families.KINDS)
def test_states_of_a_padded_batch_equal_transformers(tmp_path, kind, form, caplog):
    directory = tmp_path / "model"
    model = families.write(directory, kind, head=form == "head")
    source = directory
    if form == "fairseq":
        source = families.write_fairseq(tmp_path / "model.pt", model, kind)
    with caplog.at_level(logging.INFO):
        worst = largest_difference(source, model, families.KINDS[kind][2])
    print(f"{kind} {form}: {worst:.1e}")
    assert worst < 1e-5
    if form != "transformers":
        assert "left out, no part of the network" in caplog.text
    mask = load_hubert(source).mask_embedding
    assert torch.equal(mask, model.masked_spec_embed.detach())


def test_fairseq2s_file_gives_the_same_states(tmp_path, monkeypatch):
    model = families.write(tmp_path / "model", "wav2vec2-large")
    path = families.write_fairseq2(tmp_path / "omni.pt", model)
    with pytest.raises(RecipeError, match="width 32 and 2 layers, expected one of"):
        load_hubert(path)
    monkeypatch.setitem(fairseq2.HEADS, (32, 2), 4)
    assert largest_difference(path, model, normalizes=True) < 1e-5
    mask = load_hubert(path).mask_embedding
    assert torch.equal(mask, model.masked_spec_embed.detach())


@pytest.mark.parametrize("kind", families.KINDS)
def test_a_written_directory_is_read_by_the_familys_own_class(tmp_path, kind):
    import transformers

    model = families.write(tmp_path / "model", kind)
    ours = load_hubert(tmp_path / "model")
    save_huggingface(ours, tmp_path / "again")
    name = FAMILIES[families.KINDS[kind][0]].model
    found = transformers.AutoModel.from_pretrained(tmp_path / "again").eval()
    assert type(found).__name__ == name
    wave = speech()[0][None]
    with torch.no_grad():
        assert torch.equal(found(wave)[0], model(wave)[0])


@pytest.mark.parametrize("kind", families.KINDS)
@pytest.mark.parametrize("edit", ["missing", "unexpected"])
def test_other_keys_are_refused_by_name(tmp_path, kind, edit):
    from safetensors.torch import load_file, save_file

    families.write(tmp_path, kind)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    if edit == "missing":
        del state["encoder.layers.1.attention.q_proj.bias"]
    else:
        state["encoder.layers.1.attention.r_proj.bias"] = torch.zeros(2)
    save_file(state, path)
    with pytest.raises(RecipeError, match=rf"{edit} encoder.*attention.._proj.bias"):
        load_hubert(tmp_path)


def test_language_adapters_inside_the_blocks_are_refused(tmp_path):
    families.write(tmp_path, "wav2vec2-large", adapter_attn_dim=4)
    with pytest.raises(RecipeError, match="adapter_attn_dim: found 4.*mms-300m"):
        load_hubert(tmp_path)


@pytest.mark.parametrize("frames, buckets, distance", [(60, 16, 12), (900, 320, 800)])
def test_distances_fall_into_transformers_buckets(frames, buckets, distance):
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    theirs = WavLMAttention(8, 2, num_buckets=buckets, max_distance=distance)
    expected = theirs._relative_positions_bucket(torch.arange(1 - frames, frames))
    assert torch.equal(distance_buckets(frames, buckets, distance), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_true_sizes_compute_transformers_states(tmp_path, name):
    kind, *sizes = SIZES[name]
    model = families.write(tmp_path, kind, **true_sizes(*sizes))
    normalizes = families.KINDS[kind][2]
    upstream = Upstream(load_hubert(tmp_path))

    def differences(dtype):
        """From transformers in this type, and of both from transformers in float64."""
        waves = [wave.to(dtype) for wave in speech()]
        ours = [upstream.to(dtype).extract_features(wave[None])[0] for wave in waves]
        theirs = families.reference_states(model.to(dtype), waves, normalizes)
        theirs = [[*states[:-2], states[-1]] for states in theirs]
        pairs = [
            pair
            for rows in zip(ours, theirs, strict=True)
            for pair in zip(*rows, strict=True)
        ]
        size = max(float(y.abs().max()) for _, y in pairs)
        return max(float((x - y).abs().max()) for x, y in pairs), size

    single, size = differences(torch.float32)
    double, _ = differences(torch.float64)
    print(f"{name}: {single:.1e} of {size:.1f}, in float64 {double:.1e}")
    # The same function; what float32 adds is either side's rounding.
    assert double < 1e-9
    assert single < 1e-5 * size


@pytest.mark.slow
def test_omniasr_300m_in_its_true_shape(tmp_path):
    model = families.write(
        tmp_path / "model", "wav2vec2-large", **true_sizes(1024, 24, 16, {})
    )
    path = families.write_fairseq2(tmp_path / "omni.pt", model)
    waves = speech((8000,))
    with torch.no_grad():
        states, _ = Upstream(load_hubert(path)).extract_features(waves[0][None])
    (theirs,) = families.reference_states(model, waves, normalizes=True)
    worst = 0.0
    for x, y in zip(states, [*theirs[:-2], theirs[-1]], strict=True):
        worst = max(worst, float(((x - y).abs().max()) / y.abs().max()))
    print(f"omniasr-300m: {worst:.1e} of the largest")
    assert worst < 1e-5
