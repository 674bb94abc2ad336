"""Waveforms as users have them: what they become, and what is refused with why."""

import numpy as np
import pytest
import soxr
import torch

import espnet2_lamer
from espnet2_lamer.asr.upstream import TooShortError
from espnet2_lamer.asr.waveforms import as_batch
from espnet2_lamer.errors import RecipeError
from tests.export.family import BIAS, GROUP_NORM, build


def noise(count, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(count)


@pytest.fixture(scope="module")
def model():
    """A model with experts."""
    return build(BIAS)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.astype(np.float32),
        lambda x: x.astype(">f4"),
        lambda x: x[::-1][::-1],
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).float()[None],
        lambda x: [x],
        lambda x: (torch.from_numpy(x).requires_grad_(),),
    ],
)
def test_every_form_of_one_waveform_gives_the_same_states(model, change):
    x = noise(4000)
    expected, _ = model.extract_features(torch.from_numpy(x).float()[None])
    found, _ = model.extract_features(change(x))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_int16_is_divided_by_its_full_scale():
    x = np.array([-32768, 0, 16384] * 200, np.int16)
    for wave in (x, torch.from_numpy(x)):
        batch, lengths = as_batch(wave)
        assert lengths is None and batch.dtype == torch.float32
        assert batch[0, :3].tolist() == [-1.0, 0.0, 0.5]


@pytest.mark.parametrize("changes", [{}, GROUP_NORM], ids=["layer_norm", "group_norm"])
def test_a_list_of_different_lengths_equals_its_waveforms_one_by_one(changes):
    model = build(BIAS, **changes)
    waves = [noise(4000), noise(400, 1).astype(np.float32), noise(2500, 2)]
    states, frames = model.extract_features(waves)
    assert frames.tolist() == [12, 1, 7]
    for row, wave in enumerate(waves):
        alone, _ = model.extract_features(wave)
        for one, other in zip(states, alone, strict=True):
            valid = one[row, : len(other[0])]
            torch.testing.assert_close(valid, other[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 44100, 16000.0, np.int64(22050)])
def test_another_sampling_rate_is_converted_as_the_recipe_converts(model, rate):
    x = noise(4000).astype(np.float32)
    expected, _ = model.extract_features(soxr.resample(x, int(rate), 16000))
    found, _ = model.extract_features(x, sampling_rate=rate)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-4, atol=1e-5)
    batch, lengths = as_batch(torch.from_numpy(np.stack([x, x])), [4000, 2000], rate)
    alone = torch.from_numpy(soxr.resample(x[:2000], int(rate), 16000))
    assert lengths[1] == len(alone)
    torch.testing.assert_close(batch[1, : len(alone)], alone)


X = noise(2000)
NAN = np.where(np.arange(2000) == 7, np.nan, X)
BAD = {
    "int32": (X.astype(np.int32), {}, "found samples of int32, expected floats"),
    "uint8": (X.astype(np.uint8), {}, "found samples of uint8"),
    "uint16": (X.astype(np.uint16), {}, "found samples of uint16"),
    "bool": (X > 0, {}, "found samples of bool"),
    "complex": (X.astype(complex), {}, "found samples of complex128"),
    "text": (X.astype(str), {}, "found samples of <U"),
    "torch int": (torch.ones(2000, dtype=torch.int64), {}, "found samples of int64"),
    "path": ("a.wav", {}, "found str, .*read the file first"),
    "none": (None, {}, "found NoneType"),
    "number": (0.5, {}, "found float"),
    "numbers": (list(X), {}, "a list of numbers|found float64"),
    "floats": ([0.5, 0.1], {}, "found a list of numbers"),
    "empty list": ([], {}, "empty list"),
    "stereo": (X.reshape(-1, 2), {}, r"looks like \[samples, channels\]"),
    "3-D": (X.reshape(1, 1, -1), {}, r"found shape \(1, 1, 2000\)"),
    "0-D": (np.array(0.5), {}, r"found shape \(\)"),
    "2-D in a list": ([X[None]], {}, r"waveform 1 of the list: found shape"),
    "NaN": (NAN, {}, "waveform 1 of 1: holds NaN"),
    "NaN in a list": ([X, NAN], {}, "waveform 2 of 2: holds NaN"),
    "infinite": (np.full(2000, np.inf), {}, "NaN or infinite"),
    "lengths of a list": ([X], {"lengths": [5]}, "beside a list of waveforms"),
    "lengths shape": (X[None], {"lengths": [1, 2]}, r"expected \[1\]"),
    "lengths float": (X[None], {"lengths": [1.5]}, "expected whole numbers"),
    "lengths over": (X[None], {"lengths": [2001]}, "found 2001 .*expected 0 to 2000"),
    "lengths below": (X[None], {"lengths": [-1]}, "found -1"),
    "rate text": (X, {"sampling_rate": "16k"}, "sampling_rate: found '16k'"),
    "rate kHz": (X, {"sampling_rate": 16}, "found 16, .*16000 is 16 kHz"),
    "rate half": (X, {"sampling_rate": 0.5}, "sampling_rate: found 0.5"),
    "rate NaN": (X, {"sampling_rate": float("nan")}, "sampling_rate: found nan"),
    "rate bool": (X, {"sampling_rate": True}, "sampling_rate: found True"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_waveform_is_refused_with_the_reason(model, name):
    wave, options, message = BAD[name]
    with pytest.raises(RecipeError, match=message):
        model.extract_features(wave, **options)


@pytest.mark.parametrize("count", [0, 1, 399])
def test_too_short_is_said_with_the_number_that_is_needed(model, count):
    message = f"has {count} samples: the upstream needs at least 400"
    for wave in (noise(count), [noise(400), noise(count)]):
        with pytest.raises(TooShortError, match=message):
            model.extract_features(wave)
    model.extract_features(noise(400))


def test_padding_may_hold_anything(model):
    x = noise(4000)
    clean, _ = model.extract_features(x[None], [2000])
    x[2000:] = np.nan
    dirty, _ = model.extract_features(x[None], [2000])
    assert torch.equal(clean[-1][:, :6], dirty[-1][:, :6])


def test_integers_that_were_stored_as_floats_are_refused_where_that_counts():
    x = 32768 * noise(2000)
    raw = build(normalize_waveform=False)
    with pytest.raises(RecipeError, match="divide by the integers' full scale"):
        raw.extract_features(x)
    model = build()
    loud, _ = model.extract_features(x)
    quiet, _ = model.extract_features(x / 32768)
    torch.testing.assert_close(loud[-1], quiet[-1], rtol=1e-2, atol=1e-3)


def test_dir_shows_what_users_need_and_the_rest_works_nevertheless(model):
    names = dir(model)
    wanted = "extract_features sampling_rate languages num_layers dim hop device to"
    assert {*wanted.split()} <= {*names} and len(names) < 30
    assert not [name for name in names if name.startswith("_")]
    assert all(hasattr(model, name) for name in names)
    assert dir(espnet2_lamer) == ["__version__", "load_model", "register"]
    assert model.sampling_rate == 16000 and model.languages == ()


@pytest.mark.parametrize(
    ("lamer", "what"),
    [
        (None, "HuBERT, 2 layers of 16 values"),
        (BIAS, "top 2 of 2-4 LoRA experts"),
        ({"allocation": 3, "rank": 2, "top_k": None}, "all of 3 LoRA experts"),
        ({"allocation": 1, "rank": 2}, "one LoRA per layer"),
        ({"allocation": 0, "rank": 2}, "HuBERT, 2 layers"),
    ],
)
def test_the_description_tells_the_family_and_how_to_use_it(lamer, what):
    text = repr(build(lamer))
    assert what in text and "extract_features" in text and len(text) < 400
