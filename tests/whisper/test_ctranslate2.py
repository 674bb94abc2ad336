import struct
from dataclasses import asdict

import numpy as np
import pytest
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.fetch import convert, read_tensors

DIMS = ModelDimensions(80, 1500, 128, 2, 2, 51865, 48, 128, 2, 1)


def _ctranslate2_tensors(state):
    """openai-whisper's tensors under CTranslate2's names, stacked as there."""
    tensors = {"decoder/num_heads": np.array(2, np.int16)}

    def put(name, *keys, zero_bias=()):
        tensors[f"{name}/weight"] = torch.cat([state[f"{k}.weight"] for k in keys])
        biases = [
            torch.zeros(128) if k in zero_bias else state[f"{k}.bias"] for k in keys
        ]
        tensors[f"{name}/bias"] = torch.cat(biases)

    def norm(name, key):
        tensors[f"{name}/gamma"] = state[f"{key}.weight"]
        tensors[f"{name}/beta"] = state[f"{key}.bias"]

    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}", f"encoder.{conv}")
    for side, last, layers in (("encoder", "ln_post", 2), ("decoder", "ln", 1)):
        tensors[f"{side}/position_encodings/encodings"] = state[
            f"{side}.positional_embedding"
        ]
        norm(f"{side}/layer_norm", f"{side}.{last}")
        for i in range(layers):
            ct, oa = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            self_keys = [f"{oa}.attn.{n}" for n in ("query", "key", "value")]
            put(f"{ct}/self_attention/linear_0", *self_keys, zero_bias=(self_keys[1],))
            put(f"{ct}/self_attention/linear_1", f"{oa}.attn.out")
            norm(f"{ct}/self_attention/layer_norm", f"{oa}.attn_ln")
            put(f"{ct}/ffn/linear_0", f"{oa}.mlp.0")
            put(f"{ct}/ffn/linear_1", f"{oa}.mlp.2")
            norm(f"{ct}/ffn/layer_norm", f"{oa}.mlp_ln")
            if side == "decoder":
                cross = f"{oa}.cross_attn"
                put(f"{ct}/attention/linear_0", f"{cross}.query")
                keys = (f"{cross}.key", f"{cross}.value")
                put(f"{ct}/attention/linear_1", *keys, zero_bias=keys[:1])
                put(f"{ct}/attention/linear_2", f"{cross}.out")
                norm(f"{ct}/attention/layer_norm", f"{cross}_ln")
    tensors["decoder/embeddings/weight"] = state["decoder.token_embedding.weight"]
    return {name: np.asarray(value) for name, value in tensors.items()}


def _string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _file(tensors, version=6, kind="WhisperSpec"):
    codes = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}
    parts = [struct.pack("<I", version), _string(kind)]
    parts.append(struct.pack("<II", 3, len(tensors)))
    for name, value in tensors.items():
        parts += [_string(name), struct.pack("<B", value.ndim)]
        parts += [struct.pack("<I", n) for n in value.shape]
        parts += [struct.pack("<BI", codes[value.dtype.name], value.nbytes)]
        parts.append(value.tobytes())
    return b"".join(parts) + struct.pack("<I", 0)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    model = Whisper(DIMS).half()
    torch.nn.init.normal_(model.decoder.positional_embedding)
    return model.state_dict()


@pytest.fixture(scope="module")
def data(state):
    return _file(_ctranslate2_tensors(state))


def test_a_converted_file_is_the_same_whisper(state, data, tmp_path):
    torch.save(convert(data, "model.bin", DIMS), tmp_path / "whisper.pt")
    model = whisper.load_model(str(tmp_path / "whisper.pt"), device="cpu")
    assert asdict(model.dims) == asdict(DIMS)
    found = model.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value.float()), name


def test_every_cut_of_a_file_is_reported_as_damage(data):
    for size in (0, 3, 5, 17, 21, 30, 60, len(data) // 2, len(data) - 5000):
        with pytest.raises(RecipeError, match="cut.bin: damaged"):
            read_tensors(data[:size], "cut.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: struct.pack("<I", 5) + d[4:], "version 5"),
        (lambda d: d.replace(b"WhisperSpec", b"AnotherSpec", 1), "AnotherSpec"),
        (lambda d: d[:26] + b"\xff" + d[27:], "damaged"),
    ],
)
def test_another_kind_of_file_is_refused(data, change, message):
    with pytest.raises(RecipeError, match=message):
        read_tensors(change(data), "other.bin")


def test_sizes_that_contradict_shapes_are_refused():
    data = bytearray(_file({"a": np.zeros((2, 3), np.float32)}))
    at = data.index(struct.pack("<I", 24))
    data[at : at + 4] = struct.pack("<I", 12)
    with pytest.raises(RecipeError, match=r"'a' has 12 bytes, expected 24"):
        read_tensors(bytes(data), "model.bin")


@pytest.mark.parametrize("how", ["missing", "quantised", "shape"])
def test_tensors_that_make_no_whisper_are_named(state, how):
    tensors = _ctranslate2_tensors(state)
    name = "encoder/layer_1/ffn/linear_0/weight"
    if how == "missing":
        del tensors[name]
    elif how == "quantised":
        tensors[name] = tensors[name].astype(np.int8)
    else:
        tensors[name] = tensors[name][:, :64]
    with pytest.raises(RecipeError, match=r"layer_1/ffn/linear_0|blocks\.1\.mlp\.0"):
        convert(_file(tensors), "model.bin", DIMS)
