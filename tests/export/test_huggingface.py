"""Hugging Face directories, loaded where neither this package nor ESPnet is there."""

import json
import math

import numpy as np
import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.card import Origin
from espnet2_lamer.export.dense import mean_gates, merge_experts
from espnet2_lamer.export.huggingface import write_huggingface
from tests.export.family import BIAS, GROUP_NORM, build, fresh_process, padded, speech
from tests.tiny_hubert import MERGED

FAMILY = {
    "top2": {"lamer": {"allocation": "2,4", "rank": 2}},
    "bias": {"lamer": BIAS},
    "bias_group_norm": {"lamer": BIAS, **GROUP_NORM},
    "projection": {
        "lamer": {
            "allocation": "0,3",
            "rank": 2,
            "alpha": 5.0,
            "top_k": 1,
            "router": "projection",
            "balance": "bias",
        }
    },
    "soft_beside": {
        "lamer": {"allocation": 3, "rank": 2, "top_k": None, "targets": ["ffn"]},
        "final_norm": False,
        "mask_embedding": False,
    },
    "hubert_lora": {
        "lamer": {"allocation": 1, "rank": 3, "targets": ["output_dense"]},
        **GROUP_NORM,
        "final_norm": False,
    },
    "merged": {"lamer": MERGED},
    "ranks": {"lamer": {"allocation": "2,4", "rank": [1, 3], "alpha": 2.0}},
    "no_experts": {"normalize_waveform": False},
}

# What a user writes, and what tells whether it was right.
LOAD_ALL = """
import numpy, torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, HubertModel
from transformers import HubertForCTC, HubertForSequenceClassification

answer = {}
arrays = {}
waves = [numpy.load("wave0.npy"), numpy.load("wave1.npy"), numpy.load("wave2.npy")]
for name in given["names"]:
    extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True)
    model, info = AutoModel.from_pretrained(
        name, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys",
                                     "mismatched_keys")), info
    model.eval()
    def run(waves, **options):
        inputs = extractor(
            waves, sampling_rate=16000, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            return model(**inputs, **options)
    def keep(label, states):
        for k, state in enumerate(states):
            arrays[f"{name}/{label}/{k}"] = state.numpy()
    batch = run(waves, output_hidden_states=True)
    keep("batch", batch.hidden_states)
    keep("last", [batch.last_hidden_state])
    for row, wave in enumerate(waves):
        keep(f"single{row}", run(wave, output_hidden_states=True).hidden_states)
    plain = run(waves)
    assert plain.hidden_states is None
    assert torch.equal(plain.last_hidden_state, batch.last_hidden_state)
    assert isinstance(run(waves, return_dict=False), tuple)
    mask = getattr(model, "masked_spec_embed", None)
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    answer[name] = {
        "class": type(model).__name__,
        "config": type(config).__name__,
        "extractor": type(extractor).__name__,
        "do_normalize": extractor.do_normalize,
        "mask": None if mask is None else mask.tolist(),
        "dtype": str(model.dtype),
    }

def refused(load):
    try:
        load()
    except Exception as error:
        return str(error)

# A model goes on living: saved by transformers, loaded again, made from a config.
model = AutoModel.from_pretrained("bias", trust_remote_code=True).eval()
model.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True).eval()
inputs = torch.from_numpy(waves[0])[None]
with torch.no_grad():
    assert torch.equal(model(inputs)[0], again(inputs)[0])
model.train()
model(inputs)[0].sum().backward()
assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)
new = type(model)(model.config)
experts = [p for n, p in new.named_parameters() if n.endswith("lora_B")]
assert experts and not any(p.any() for p in experts)
assert all(p.any() for n, p in new.named_parameters() if n.endswith("lora_A"))

answer["refused"] = {
    f"{name} {sizes} {kind.__name__}": refused(
        lambda: kind.from_pretrained(name, ignore_mismatched_sizes=sizes)
    )
    for name in (*given["routed"], "again")
    for sizes in (False, True)
    for kind in (HubertModel, HubertForCTC, HubertForSequenceClassification)
}
answer["acts"] = [model.config.hidden_act, again.config.hidden_act]
dense = HubertModel.from_pretrained("dense").eval()
with torch.no_grad():
    found = dense(torch.from_numpy(waves[0])[None], output_hidden_states=True)
keep_last = [*found.hidden_states[:-1], found.last_hidden_state]
for k, state in enumerate(keep_last):
    arrays[f"dense/{k}"] = state.numpy()
numpy.savez("states.npz", **arrays)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What a process without ESPnet, torchaudio, S3PRL and this package loads."""
    root = tmp_path_factory.mktemp("hf")
    models = {name: build(**options) for name, options in FAMILY.items()}
    for name, model in models.items():
        write_huggingface(model, root / name)
    raw = build(BIAS, normalize_waveform=False)
    models["dense"] = merge_experts(raw, mean_gates(raw, speech(), "eng"))
    write_huggingface(models["dense"], root / "dense")
    for row, wave in enumerate(speech()):
        np.save(root / f"wave{row}.npy", wave.numpy())
    facts = fresh_process(
        LOAD_ALL,
        root,
        blocked=["espnet", "espnet2", "espnet2_lamer", "torchaudio", "s3prl"],
        names=list(FAMILY),
        routed=[name for name, options in FAMILY.items() if "lamer" in options],
    )
    return models, facts, np.load(root / "states.npz")


def close(found, expected):
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_every_state_of_single_and_padded_input_is_the_models(loaded, name):
    models, facts, arrays = loaded
    model = models[name]
    batch, frames = model.extract_features(*padded(speech()))
    # transformers itself ends before the final norm: only ours has a choice.
    ours = facts[name]["class"] == "LamerHubertModel"
    for k in range(model.num_layers + (1 if ours else 0)):
        for row, count in enumerate(frames.tolist()):
            alone, _ = model.extract_features(speech()[row][None])
            close(arrays[f"{name}/single{row}/{k}"], alone[k])
            found = arrays[f"{name}/batch/{k}"]
            assert found.shape[:2] == (3, 9)
            close(found[row, :count], batch[k][row, :count])
    assert f"{name}/single0/{model.num_layers}" in arrays
    assert f"{name}/single0/{model.num_layers + 1}" not in arrays
    if model.final_norm:
        close(arrays[f"{name}/last/0"][0], batch[-1][0])


@pytest.mark.parametrize("name", FAMILY)
def test_config_extractor_and_mask_embedding_are_the_models(loaded, name):
    models, facts, _ = loaded
    wav2vec2, fact = models[name].wav2vec2, facts[name]
    prefix = "" if name == "no_experts" else "Lamer"
    assert fact["class"] == f"{prefix}HubertModel"
    assert fact["config"] == f"{prefix}HubertConfig"
    if prefix:
        assert fact["extractor"] == "LamerHubertFeatureExtractor"
    assert fact["do_normalize"] == wav2vec2.architecture["normalize_waveform"]
    assert fact["dtype"] == "torch.float32"
    if wav2vec2.mask_embedding is None:
        assert fact["mask"] is None
    else:
        close(np.float32(fact["mask"]), wav2vec2.mask_embedding)


def test_a_plain_hubert_model_refuses_a_routed_one_and_says_how(loaded):
    _, facts, _ = loaded
    assert len(facts["refused"]) == 9 * 2 * 3
    for case, message in facts["refused"].items():
        assert message and "trust_remote_code=True" in message, case
    assert facts["acts"] == ["gelu", "gelu"]


@pytest.mark.slow  # S3PRL takes seconds to import
def test_s3prls_own_upstream_for_hubert_refuses_a_routed_one(tmp_path):
    from espnet2_lamer import load_model

    write_huggingface(build(BIAS), tmp_path / "routed")
    write_huggingface(build(), tmp_path / "plain")
    with pytest.raises(RecipeError, match="cannot load it .*trust_remote_code=True"):
        load_model(
            f"s3prl:hf_hubert_custom:{tmp_path / 'routed'}", trust_s3prl_files=True
        )
    load_model(f"s3prl:hf_hubert_custom:{tmp_path / 'plain'}", trust_s3prl_files=True)


def test_the_dense_form_is_a_plain_hubert_model(loaded):
    models, _, arrays = loaded
    states, _ = models["dense"].extract_features(speech()[0][None])
    for k, state in enumerate(states):
        close(arrays[f"dense/{k}"], state)


def test_the_card_says_where_the_model_comes_from(tmp_path):
    origin = Origin("big", ["cmn", "yue"], "cc-by-nc-sa-4.0", ["teacher: mHuBERT"])
    write_huggingface(build(BIAS), tmp_path / "dir", origin)
    card = (tmp_path / "dir" / "README.md").read_text()
    front = card.split("---\n")[1]
    assert "license: cc-by-nc-sa-4.0" in front and "- cmn\n- yue" in front
    assert "# big" in card and "teacher: mHuBERT" in card
    assert "trust_remote_code=True" in card
    config = json.loads((tmp_path / "dir" / "config.json").read_text())
    assert config["num_experts"] == [2, 4] and config["use_selection_bias"] is True
    weights = (tmp_path / "dir" / "model.safetensors").stat()
    assert (
        weights.st_mode & 0o044
        == (tmp_path / "dir" / "README.md").stat().st_mode & 0o044
    )
    assert not math.isclose(weights.st_size, 0)


def test_nothing_but_an_earlier_export_is_replaced(tmp_path):
    write_huggingface(build(BIAS), tmp_path / "dir")
    write_huggingface(build(), tmp_path / "dir")
    assert not (tmp_path / "dir" / "modeling_lamer_hubert.py").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(RecipeError, match="a directory that no export wrote"):
        write_huggingface(build(), tmp_path / "thesis")
    with pytest.raises(RecipeError, match="found a file"):
        write_huggingface(build(), tmp_path / "thesis" / "chapter.tex")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "x"


@pytest.mark.parametrize("name", ["merged", "ranks", "top2"])
def test_options_of_the_experts_come_back_from_the_directory(tmp_path, name):
    from espnet2_lamer import load_model
    from espnet2_lamer.layers import LamerConfig, parse_ranks

    model = build(**FAMILY[name])
    write_huggingface(model, tmp_path / name)
    found = load_model(tmp_path / name)
    ours, theirs = LamerConfig(**model.lamer), LamerConfig(**found.lamer)
    assert (ours.merge, ours.top_k) == (theirs.merge, theirs.top_k)
    assert parse_ranks(ours.rank, 2) == parse_ranks(theirs.rank, 2)
    expected, _ = model.extract_features(*padded(speech()))
    states, _ = found.extract_features(*padded(speech()))
    for ours, theirs in zip(expected, states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
