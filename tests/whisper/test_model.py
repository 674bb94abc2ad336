import argparse

import pytest
import torch
import yaml
from espnet2.bin.asr_inference import Speech2Text

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.zoo import write_full_whisper
from espnet2_lamer.tasks.asr import LamerASRTask, load_whisper_model
from espnet2_lamer.whisper.lora import lora_names, save_expert
from espnet2_lamer.whisper.text import token_list, write_token_list
from espnet2_lamer.whisper.transcription import transcribe
from tests.whisper.small_whisper import (
    LANGUAGES,
    batch,
    make_model,
    save_whisper,
    speech,
    stir,
)

METHODS = ("frozen", "full", "multilingual", "experts", "mole", "student")


@pytest.fixture(autouse=True)
def fast_yaml(monkeypatch):
    """Read the 51865 tokens of a packed config by libyaml, in half a second."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    monkeypatch.setattr(yaml, "safe_load", lambda text: yaml.load(text, loader))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    write_token_list(path)
    return path


def _config(path, whisper, tokens, method, model_conf=None, **lora):
    """Write the config.yaml of an experiment; values as ESPnet would save them."""
    parser = LamerASRTask.get_parser()
    lora = {"method": method, "rank": 4, "student_rank": 6, "shared_layers": 2} | lora
    half = {"whisper": str(whisper), "lora": {"languages": list(LANGUAGES)} | lora}
    args = parser.parse_args(["--output_dir", str(path.parent)])
    changes = {
        "token_list": str(tokens),
        "token_type": "whisper_multilingual",
        "bpemodel": "whisper_multilingual",
        "input_size": 1,
        "normalize": None,
        "encoder": "whisper_lora",
        "encoder_conf": half,
        "decoder": "whisper_lora",
        "decoder_conf": half,
        "model": "whisper_lora",
        "model_conf": model_conf or {},
        # Auto is bf16 on some CPUs, where another order of sums is another token.
        "amp_dtype": "none",
    }
    settings = vars(args) | changes
    settings.pop("version", None)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def _checkpoint(path, model):
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("method", "more", "part"),
    [
        ("frozen", {}, None),
        ("full", {}, ""),
        ("multilingual", {}, ".multilingual."),
        ("experts", {}, None),
        ("experts", {"train_language": "cmn"}, ".cmn."),
        ("student", {}, ".student."),
    ],
)
def test_what_trains_follows_from_the_method(whisper_file, method, more, part):
    model = make_model(whisper_file, method, **more)
    for name, parameter in model.named_parameters():
        expected = part is not None and part in name
        assert parameter.requires_grad == expected, name


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_batch_is_the_mean_over_all_tokens(whisper_file, method):
    conf = {"identifier_weight": 0.0, "hidden_weight": 0.0}
    model = stir(make_model(whisper_file, method, model_conf=conf))
    data = batch()
    together, stats, weight = model(**data)
    assert weight.item() == (4 + 3 + 5) + 3  # text and one end each
    total = 0.0
    for row in range(3):
        alone = {key: value[row : row + 1] for key, value in data.items()}
        alone["speech"] = alone["speech"][:, : alone["speech_lengths"]]
        loss, _, count = model(**alone)
        total += loss.item() * count.item()
    assert together.item() == pytest.approx(total / weight.item(), abs=1e-4)
    assert 0.0 <= stats["acc"].item() <= 1.0


def test_bfloat16_changes_the_loss_a_little(whisper_file):
    model = stir(make_model(whisper_file, "mole"))
    expected = model(**batch())[0]
    model.amp_dtype = torch.bfloat16
    loss = model(**batch())[0]
    assert loss.dtype == torch.float32
    assert loss.item() != expected.item()
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("lang", [None, torch.tensor([[0], [3], [-1]])])
def test_a_missing_or_unknown_language_is_named(whisper_file, lang):
    message = (
        "found no languages" if lang is None else r"found \[-1, 3\].*eng, cmn, yue"
    )
    with pytest.raises(RecipeError, match=message):
        make_model(whisper_file)(**(batch() | {"lang": lang}))


def test_an_expert_is_trained_on_its_own_language_only(whisper_file):
    model = make_model(whisper_file, train_language="cmn")
    with pytest.raises(RecipeError, match="found utterances of yue where .* cmn"):
        model(**batch((1, 2, 1)))


def test_encoder_and_decoder_must_agree(whisper_file):
    one, other = make_model(whisper_file), make_model(whisper_file, rank=5)
    arguments = {
        "vocab_size": 51865,
        "token_list": list(token_list()),
        **dict.fromkeys(
            "frontend specaug normalize preencoder postencoder joint_network".split()
        ),
        "ctc": None,
    }
    with pytest.raises(RecipeError, match="different values of whisper, dims or lora"):
        type(one)(encoder=one.encoder, decoder=other.decoder, **arguments)
    with pytest.raises(RecipeError, match="ctc_weight: found 0.3"):
        type(one)(encoder=one.encoder, decoder=one.decoder, ctc_weight=0.3, **arguments)


@pytest.mark.parametrize("method", ["multilingual", "mole"])
def test_a_checkpoint_leaves_the_frozen_whisper_out(whisper_file, tmp_path, method):
    model = stir(make_model(whisper_file, method))
    path = _checkpoint(tmp_path / "1epoch.pth", model)
    state = torch.load(path)
    added = ("experts", "combination", "identifier", "whisper_sha256")
    for name, value in state.items():
        assert not value.numel() or any(part in name for part in added), name
    again = make_model(whisper_file, method)
    again.load_state_dict(state)
    expected, found = (m.encoder.full_state() for m in (model, again))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_checkpoint_is_refused_by_another_whisper(whisper_file, tmp_path):
    state = make_model(whisper_file, "multilingual").state_dict()
    other = save_whisper(tmp_path / "other.pt", seed=3)
    with pytest.raises(RecipeError, match="trained on a base with SHA-256"):
        make_model(other, "multilingual").load_state_dict(state, strict=False)
    with pytest.raises(RecipeError, match="has .* tensors that|lacks"):
        make_model(whisper_file, "experts").load_state_dict(state, strict=False)


def test_a_checkpoint_without_whisper_is_refused_where_there_is_none(whisper_file):
    model = make_model(whisper_file, "multilingual")
    bare = make_model(model.encoder.dims, "multilingual", device="cpu")
    with pytest.raises(RecipeError, match="lacks .* tensors of the encoder"):
        bare.load_state_dict(model.state_dict(), strict=False)
    # Nor does a loader that looks at nothing but shapes take the empty stand-in.
    state = model.state_dict()
    assert state["encoder.whisper.ln_post.weight"].numel() == 0


def test_a_fully_tuned_whisper_is_in_its_checkpoint(whisper_file):
    model = make_model(whisper_file, "full")
    assert "encoder.whisper.conv1.weight" in model.state_dict()
    assert not any("sha256" in name for name in model.state_dict())


def test_an_experiments_expert_is_exported_from_its_files(
    whisper_file, tokens, tmp_path
):
    config = _config(
        tmp_path / "config.yaml", whisper_file, tokens, "experts", train_language="eng"
    )
    model = stir(make_model(whisper_file, train_language="eng"))
    checkpoint = _checkpoint(tmp_path / "1epoch.pth", model)
    trained = load_whisper_model(config, checkpoint)
    save_expert(trained, "eng", tmp_path / "out" / "eng.safetensors")
    save_expert(model, "eng", tmp_path / "eng.safetensors")
    found = (tmp_path / "out" / "eng.safetensors").read_bytes()
    assert found == (tmp_path / "eng.safetensors").read_bytes()


@pytest.mark.parametrize(
    "method",
    [
        "mole",
        *(
            pytest.param(method, marks=pytest.mark.slow)
            for method in ("student", "full", "multilingual", "experts")
        ),
    ],
)
def test_a_packed_model_needs_no_other_file(whisper_file, tokens, tmp_path, method):
    files = {}
    teachers = stir(make_model(whisper_file))
    for name in LANGUAGES:
        files[name] = str(tmp_path / f"{name}.safetensors")
        save_expert(teachers, name, files[name])
    conf = {"experts": files if method in ("experts", "mole", "student") else {}}
    config = _config(tmp_path / "config.yaml", whisper_file, tokens, method, conf)
    model = load_whisper_model(config)
    stir(model, seed=8)
    checkpoint = _checkpoint(tmp_path / "1epoch.pth", model)
    packed = write_full_whisper(config, checkpoint, tmp_path / "packed")
    settings = yaml.safe_load(packed[0].read_text(encoding="utf-8"))
    assert settings["encoder_conf"]["whisper"] is None
    assert settings["model_conf"]["experts"] == {}
    again = load_whisper_model(*packed)
    assert lora_names(again.encoder) == {
        "full": (),
        "multilingual": ("multilingual",),
        "student": ("student",),
    }.get(method, LANGUAGES)
    waves, lengths = speech(0.6, 0.4)
    languages = "cmn" if method == "experts" else None
    expected = transcribe(model, waves, lengths, languages)
    found = transcribe(again, waves, lengths, languages)
    assert found.tokens == expected.tokens
    assert found.languages == expected.languages


def test_speech2text_writes_what_the_fast_path_does(whisper_file, tokens, tmp_path):
    config = _config(tmp_path / "config.yaml", whisper_file, tokens, "mole")
    checkpoint = _checkpoint(
        tmp_path / "1epoch.pth", stir(make_model(whisper_file, "mole"), size=1.0)
    )
    packed = write_full_whisper(config, checkpoint, tmp_path / "packed")
    speech2text = Speech2Text(*packed, ctc_weight=0.0, beam_size=1, maxlenratio=-9)
    model = load_whisper_model(config, checkpoint)
    waves, lengths = speech(0.6)
    for language in (None, *LANGUAGES):
        speech2text.asr_model.language = language
        [(text, found, numbers, _)] = speech2text(waves[0])
        expected = transcribe(model, waves, lengths, language, max_tokens=9)
        assert numbers == [token for token in expected.tokens[0] if token]
        assert text == expected.texts[0]
        assert found == [token_list()[number] for number in numbers]


def test_espnets_preprocessor_gives_whispers_tokens(tokens):
    args = argparse.Namespace(
        use_preprocessor=True,
        token_type="whisper_multilingual",
        bpemodel="whisper_multilingual",
        token_list=str(tokens),
        non_linguistic_symbols=None,
        cleaner=None,
        g2p=None,
    )
    preprocess = LamerASRTask.build_preprocess_fn(args, train=True)
    data = preprocess("u", {"text": "面包车 password"})
    names = [token_list()[number] for number in data["text"]]
    assert names[-1] == "\u0120password"
    assert "lang" in LamerASRTask.optional_data_names()
