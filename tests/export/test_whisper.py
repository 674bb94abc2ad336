"""A merged Whisper in the forms of others gives the logits of the model it is from."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
import whisper
import yaml

from espnet2_lamer.bin.export import main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.whisper import merged_whisper
from espnet2_lamer.export.zoo import pack_model, write_full_whisper
from espnet2_lamer.tasks.asr import load_whisper_model
from espnet2_lamer.whisper.text import encode_text, tokenizer_of, write_token_list
from tests.whisper.small_whisper import DIMS, make_model, save_whisper, speech, stir

LANGUAGES = ["eng", "cmn"]
TEXTS = [
    "Good day to you, it's 10:30!",
    "今天天氣好，我哋去飲茶。",
    "naïve — ёлка 한국어 \n x",
]


def experiment(root, method, **lora):
    """Write config and weights of a stirred model as training leaves them."""
    root.mkdir(parents=True)
    file = save_whisper(root / "whisper.pt", n_text_ctx=DIMS["n_text_ctx"])
    lora = {"method": method, "rank": 4, "student_rank": 6, "shared_layers": 2} | lora
    lora |= {"languages": LANGUAGES, "targets": "all"}
    half = {"whisper": str(file), "lora": lora}
    # Whisper's own way to end audio, to compare with.
    config = {
        **dict.fromkeys(("encoder", "decoder", "model"), "whisper_lora"),
        "encoder_conf": half | {"min_seconds": 30.0},
        "decoder_conf": half,
        "model_conf": {},
        "ctc_conf": {},
        "frontend_conf": {},
        "input_size": 1,
        "token_list": str(root / "tokens.txt"),
        "token_type": "whisper_multilingual",
        "bpemodel": "whisper_multilingual",
        **dict.fromkeys(("frontend", "specaug", "normalize", "preencoder")),
        **dict.fromkeys(("postencoder", "init")),
    }
    write_token_list(root / "tokens.txt")
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(make_model(file, **lora).state_dict(), root / "model.pth")
    model = load_whisper_model(root / "config.yaml", root / "model.pth")
    stir(model, size=0.1)
    with torch.no_grad():
        for vector in model.decoder.new_tokens.values():
            vector.add_(torch.randn(vector.shape) * 0.1)
    torch.save(model.state_dict(), root / "model.pth")
    return model


@torch.no_grad()
def wanted(model, language):
    """Mel spectrogram, all tokens, and logits of ours for them."""
    waves, lengths = speech(2.0)
    routed = model.route(waves, lengths, [language])
    text = torch.tensor([encode_text(TEXTS[0])])
    logits = model.decoder.decode(routed.encoded, routed.prompt, text).logits
    padded = torch.nn.functional.pad(waves, (0, 480000 - waves.shape[1]))
    mel = whisper.log_mel_spectrogram(padded[0])[None]
    return mel, torch.cat([routed.prompt, text], 1), logits


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    root = tmp_path_factory.mktemp("whisper") / "experts"
    return root, experiment(root, "experts")


def export(kind, source, output, *options):
    main([f"--kind={kind}", f"--experiment={source}", f"--output={output}", *options])
    return output


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_openai_whisper_gives_the_experts_logits(experts, tmp_path):
    root, model = experts
    files = {}
    for language in LANGUAGES:
        file = tmp_path / f"{language}.pt"
        export("openai", root, file, f"--language={language}")
        mel, tokens, logits = wanted(model, language)
        theirs = whisper.load_model(str(file), device="cpu")
        found = theirs(mel, tokens)[:, -logits.shape[1] :]
        close(found, logits)
        files[language] = found
    assert not torch.allclose(files["eng"], files["cmn"], atol=1e-2)


@torch.no_grad()
def test_transformers_gives_the_experts_logits_and_tokens(experts, tmp_path):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    root, model = experts
    folder = export("hf", root, tmp_path / "hf", "--language=cmn")
    theirs = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = WhisperProcessor.from_pretrained(folder)
    mel, tokens, logits = wanted(model, "cmn")
    waves, _ = speech(2.0)
    features = processor(waves[0].numpy(), sampling_rate=16000, return_tensors="pt")
    close(features.input_features, mel)
    found = theirs(mel, decoder_input_ids=tokens).logits[:, -logits.shape[1] :]
    close(found, logits)
    own = tokenizer_of(DIMS["n_vocab"])
    for text in TEXTS:
        ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert ids == own.encode(text)
        assert processor.tokenizer.decode(ids) == text
    for token, number in own.special_tokens.items():
        assert processor.tokenizer.convert_tokens_to_ids(token) == number
    # The prompt is in the settings: no option is needed.
    with torch.no_grad():
        said = theirs.generate(mel, max_new_tokens=8, return_timestamps=False)
        best = [tokens[0, :4].tolist()]
        for _ in range(8):
            rows = theirs(mel, decoder_input_ids=torch.tensor(best)).logits[:, -1]
            rows = model.decoder.prompts.suppress(rows, first=len(best[0]) == 4)
            best[0].append(int(rows.argmax()))
    assert said[0, -8:].tolist() == best[0][4:]
    card = (folder / "README.md").read_text()
    assert "<|startoftranscript|><|zh|><|transcribe|><|notimestamps|>" in card


@pytest.mark.skipif(
    importlib.util.find_spec("ctranslate2") is None, reason="ctranslate2 is not here"
)
@torch.no_grad()
def test_ctranslate2_gives_the_experts_logits(experts, tmp_path):
    import ctranslate2

    root, model = experts
    folder = export("ctranslate2", root, tmp_path / "ct2", "--language=cmn")
    theirs = ctranslate2.models.Whisper(str(folder), device="cpu")
    mel, tokens, logits = wanted(model, "cmn")
    features = ctranslate2.StorageView.from_array(mel.numpy())
    best = theirs.generate(
        features,
        [tokens[0, :4].tolist()],
        beam_size=1,
        max_length=12,
        return_logits_vocab=True,
        suppress_tokens=[],
        suppress_blank=False,
    )[0]
    waves, lengths = speech(2.0)
    routed = model.route(waves, lengths, ["cmn"])
    said = torch.tensor([best.sequences_ids[0]])
    expected = model.decoder.decode(routed.encoded, routed.prompt, said).logits[0]
    assert len(best.logits[0]) > 4
    for place, row in enumerate(best.logits[0]):
        close(torch.from_numpy(np.array(row)).flatten(), expected[place])


def test_without_ctranslate2_the_package_is_named(experts, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "espnet2_lamer.errors.find_spec",
        lambda name: None if name == "ctranslate2" else found(name),
    )
    with pytest.raises(RecipeError, match=r"ctranslate2.*espnet2-lamer\[ctranslate2\]"):
        export("ctranslate2", experts[0], tmp_path / "c", "--language=cmn")


@torch.no_grad()
@pytest.mark.parametrize("method", ["multilingual", "student", "frozen"])
def test_every_lora_that_is_one_can_be_merged(tmp_path, method):
    model = experiment(tmp_path / "exp", method)
    export("openai", tmp_path / "exp", tmp_path / "w.pt", "--language=cmn")
    mel, tokens, logits = wanted(model, "cmn")
    theirs = whisper.load_model(str(tmp_path / "w.pt"), device="cpu")
    close(theirs(mel, tokens)[:, -logits.shape[1] :], logits)


@torch.no_grad()
def test_a_prompt_vector_of_its_own_takes_the_place_of_its_token(tmp_path):
    tokens = {"eng": "en", "cmn": "new:zh"}
    model = experiment(tmp_path / "exp", "experts", language_tokens=tokens)
    export("openai", tmp_path / "exp", tmp_path / "w.pt", "--language=cmn")
    mel, tokens, logits = wanted(model, "cmn")
    token = model.decoder.prompts.spoken["cmn"]
    tokens[0, 1] = token
    theirs = whisper.load_model(str(tmp_path / "w.pt"), device="cpu")
    found = theirs(mel, tokens)[:, -logits.shape[1] :]
    # As an output it is never said.
    found[..., token] = logits[..., token] = 0.0
    close(found, logits)
    multilingual = experiment(
        tmp_path / "all", "multilingual", language_tokens={"cmn": "new:zh"}
    )
    assert multilingual.decoder.new_tokens
    with pytest.raises(RecipeError, match="--language: found none.*prompt vector of t"):
        export("openai", tmp_path / "all", tmp_path / "all.pt")


@pytest.mark.slow  # the YAML of 51,865 tokens
def test_a_packed_zip_and_an_experts_own_folder_are_sources(experts, tmp_path):
    root, _ = experts
    files = write_full_whisper(root / "config.yaml", root / "model.pth", tmp_path)
    pack_model("asr", *files, tmp_path / "w.zip")
    expected = merged_whisper(root / "config.yaml", root / "model.pth", "eng")[0]
    file = export("openai", tmp_path / "w.zip", tmp_path / "zip.pt", "--language=eng")
    found = torch.load(file)
    assert found["dims"] == expected["dims"]
    for name, value in expected["model_state_dict"].items():
        assert torch.equal(found["model_state_dict"][name], value), name
    export("hf", tmp_path / "w.zip", tmp_path / "hf", "--language=eng")
    assert json.loads((tmp_path / "hf/generation_config.json").read_text())[
        "language"
    ] == ("<|en|>")


def test_what_is_not_one_lora_is_refused(experts, tmp_path):
    root, _ = experts
    for options, message in (
        ([], "--language: found None, expected one of eng, cmn"),
        (["--language=yue"], "--language: found 'yue', expected one of eng, cmn"),
    ):
        with pytest.raises(RecipeError, match=message):
            export("openai", root, tmp_path / "w.pt", *options)
    with pytest.raises(RecipeError, match=r"expected a name that ends in \.pt"):
        export("openai", root, tmp_path / "w.bin", "--language=eng")
    with pytest.raises(RecipeError, match="a directory that no export wrote"):
        export("hf", root, shutil.copytree(root, tmp_path / "x"), "--language=eng")
    experiment(tmp_path / "mole", "mole")
    with pytest.raises(RecipeError, match="mole chooses .*give the experts"):
        export("openai", tmp_path / "mole", tmp_path / "w.pt", "--language=eng")
    assert not (tmp_path / "w.pt").exists()
