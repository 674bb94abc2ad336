import pytest
import torch
from whisper.audio import log_mel_spectrogram

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.config import WhisperLoraConfig
from espnet2_lamer.whisper.lora import (
    Route,
    add_lora,
    expert_linears,
    expert_state,
    load_expert,
    lora_names,
    save_expert,
    whisper_parameter_report,
)
from tests.rounding import product_bound
from tests.whisper.small_whisper import (
    LANGUAGES,
    MEDIUM,
    batch,
    make_model,
    plain_whisper,
    speech,
    stir,
    text,
)


def _states(model, waves, lengths, languages, tokens):
    route = None if languages is None else Route.of(languages)
    encoded = model.encoder.encode(waves, lengths, route)
    prompt = model.decoder.prompts.for_languages(
        languages or ["eng"] * len(waves), waves.device
    )
    decoded = model.decoder.decode(encoded, prompt, tokens)
    return encoded.output, decoded.logits


@pytest.mark.parametrize("targets", ["q,v", "q,k,v,o", "all"])
def test_before_training_an_experts_states_are_plain_whispers_to_the_bit(
    whisper_file, targets
):
    plain = plain_whisper()
    model = make_model(whisper_file, targets=targets)
    waves, lengths = speech(30.0)
    waves[:, -400:] = 0.0
    tokens, _ = text(5)
    decoder = model.decoder
    prompt = decoder.prompts.for_languages(["yue"], waves.device)
    last: list[torch.Tensor] = []
    plain.decoder.blocks[-1].register_forward_hook(lambda *io: last.append(io[2]))
    with torch.no_grad():
        memory = plain.encoder(log_mel_spectrogram(waves))
        logits = plain.decoder(torch.cat([prompt, tokens], 1), memory)
        route = Route.of(["yue"])
        encoded = model.encoder.encode(waves, lengths, route)
        decoded = decoder.decode(encoded, prompt, tokens, keep_states=True)
        new = slice(prompt.shape[1] - 1, None)
        assert torch.equal(encoded.output, memory)
        assert torch.equal(decoded.states[-1], last[0][:, new])
        # We leave out the prompt's logits: a product of another shape, which may add
        # up in another order.
        bound = product_bound(
            plain.decoder.ln(last[0][:, new]), plain.decoder.token_embedding.weight
        )
        assert ((decoded.logits - logits[:, new]).abs() <= bound).all()


@pytest.mark.parametrize("targets", ["q,v", "all"])
def test_each_utterance_of_a_mixed_batch_uses_its_own_expert(whisper_file, targets):
    model = stir(make_model(whisper_file, targets=targets), size=0.2)
    waves, lengths = speech(0.6, 0.4, 0.5, 0.45)
    tokens, _ = text(4, 4, 4, 4)
    languages = ["yue", "eng", "yue", "cmn"]
    together = _states(model, waves, lengths, languages, tokens)
    for row, (n, language) in enumerate(zip(lengths, languages, strict=True)):
        alone = _states(
            model,
            waves[row : row + 1, :n],
            lengths[row : row + 1],
            [language],
            tokens[row : row + 1],
        )
        frames = alone[0].shape[1]
        torch.testing.assert_close(
            together[0][row, :frames], alone[0][0], atol=2e-5, rtol=1e-5
        )
        assert not together[0][row, frames:].any()
        size = alone[1].abs().max()
        assert (together[1][row] - alone[1][0]).abs().max() <= 2e-5 * size


def test_a_wrong_language_gives_that_languages_expert(whisper_file):
    model = stir(make_model(whisper_file))
    waves, lengths = speech(0.6)
    tokens, _ = text(4)
    outputs = {
        name: _states(model, waves, lengths, [name], tokens)[1] for name in LANGUAGES
    }
    # cmn and yue have the same prompt: the experts make the difference.
    assert (outputs["cmn"] - outputs["yue"]).abs().max() > 0.01


def test_a_language_without_expert_is_an_error_that_names_it(whisper_file):
    model = make_model(whisper_file)
    waves, lengths = speech(0.6, 0.4)
    message = "no expert for language deu, found experts for eng, cmn, yue"
    with pytest.raises(RecipeError, match=message):
        model.encoder.encode(waves, lengths, Route.of(["eng", "deu"]))
    with pytest.raises(RecipeError, match="deu"):
        expert_state(model, "deu")


def test_every_language_starts_from_the_same_a_whenever_it_is_added(whisper_file):
    early = make_model(whisper_file, languages=["eng", "cmn"])
    with torch.no_grad():
        torch.rand(7)
        for half in (early.encoder, early.decoder):
            add_lora(half, "yue", 4)
    late = make_model(whisper_file, seed=5)
    found, expected = expert_state(early, "yue"), expert_state(late, "eng")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    linears = expert_linears(late).values()
    first = {tuple(x.experts["eng"].lora_A[0, 0].tolist()) for x in linears}
    assert len(first) == len(linears)  # and another one in every Linear


def test_an_expert_added_later_trains_without_touching_the_others(
    whisper_file, tmp_path
):
    old = stir(make_model(whisper_file, languages=["eng", "cmn"]))
    files = {}
    for language in ("eng", "cmn"):
        files[language] = str(tmp_path / f"{language}.safetensors")
        save_expert(old, language, files[language])
    model = make_model(
        whisper_file, train_language="yue", model_conf={"experts": files}
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 0.1)
    for _ in range(2):
        loss, _, _ = model.train()(**batch((2, 2, 2)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) != (".yue." in name), name
    waves, lengths = speech(0.6)
    tokens, _ = text(4)
    for language in ("eng", "cmn"):
        expected = _states(old, waves, lengths, [language], tokens)
        found = _states(model.eval(), waves, lengths, [language], tokens)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_an_expert_comes_back_from_its_file(whisper_file, tmp_path):
    model = stir(make_model(whisper_file, language_tokens={"yue": "new:zh"}))
    with torch.no_grad():
        model.decoder.new_tokens["yue"].add_(1.0)
    path = tmp_path / "yue.safetensors"
    save_expert(model, "yue", path)
    other = make_model(whisper_file, language_tokens={"yue": "new:zh"})
    load_expert(other, "yue", path)
    expected = expert_state(model, "yue")
    assert "new_token" in expected
    for name, value in expert_state(other, "yue").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8}, "rank: found 4, expected 8"),
        ({"targets": "all"}, "targets: found 'q,v', expected 'all'"),
        ({"alpha": 8}, "alpha: found 4.0, expected 8.0"),
        ({"decoder": False}, "not fit the model"),
    ],
)
def test_an_expert_of_another_configuration_is_refused(
    whisper_file, tmp_path, changes, message
):
    path = tmp_path / "eng.safetensors"
    save_expert(make_model(whisper_file), "eng", path)
    with pytest.raises(RecipeError, match=message):
        load_expert(make_model(whisper_file, **changes), "eng", path)


def test_files_that_are_no_expert_of_the_language_are_refused(whisper_file, tmp_path):
    model = make_model(whisper_file)
    path = tmp_path / "eng.safetensors"
    with pytest.raises(RecipeError, match="train the expert first"):
        load_expert(model, "eng", path)
    save_expert(model, "eng", path)
    with pytest.raises(RecipeError, match="language: found 'eng', expected 'cmn'"):
        load_expert(model, "cmn", path)
    path.write_bytes(b"nothing")
    with pytest.raises(RecipeError, match="not a safetensors file"):
        load_expert(model, "eng", path)


# facts: the paper's base has 24 + 24 layers of width 1024; a LoRA of rank 64 on q and
# v of 72 attentions is 2 * 72 * 64 * 2048 parameters, and so on.
@pytest.mark.parametrize(
    ("targets", "expert", "student"),
    [
        ("q,v", 18_874_368, 75_497_472),
        pytest.param("q,k,v,o", 37_748_736, 150_994_944, marks=pytest.mark.slow),
        pytest.param("all", 69_206_016, 276_824_064, marks=pytest.mark.slow),
    ],
)
def test_counts_for_whisper_medium_are_the_papers(targets, expert, student):
    model = make_model(
        MEDIUM, "student", device="meta", targets=targets, rank=64, student_rank=256
    )
    report = whisper_parameter_report(model)
    assert report["lora_by_name"] == dict.fromkeys(LANGUAGES, expert) | {
        "student": student
    }
    # openai-whisper's medium less the encoder's positions, which are no parameter.
    assert report["whisper"] == 762_321_920
    assert report["trainable"] == student
    assert report["inference"] == report["total"] - 3 * expert


def test_targets_and_halves_are_what_the_config_says(whisper_file):
    model = make_model(whisper_file, targets="q,k,v,o", encoder=False)
    assert lora_names(model.encoder) == ()
    names = {
        name.rsplit(".", 2)[1:][0] + "." + name.rsplit(".", 1)[1]
        for name in expert_linears(model.decoder)
    }
    parts, kinds = ("attn", "cross_attn"), ("query", "key", "value", "out")
    assert names == {f"{p}.{k}" for p in parts for k in kinds}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lora"}, "lora.method: found 'lora'"),
        ({"targets": "q"}, "lora.targets: found 'q'"),
        ({"rank": 0}, "lora.rank: found 0"),
        ({"dropout": 1.0}, "lora.dropout: found 1.0"),
        ({"languages": ["eng", "eng"]}, "lora.languages"),
        ({"languages": ["student"]}, "lora.languages"),
        ({"languages": []}, r"lora.languages: found \(\)"),
        ({"method": "mole", "encoder": False}, "lora.encoder: found False"),
        ({"train_language": "deu"}, "lora.train_language: found 'deu'"),
        ({"language_tokens": {"deu": "de"}}, "lora.language_tokens: found {'deu'"),
    ],
)
def test_a_wrong_option_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        WhisperLoraConfig(**({"languages": LANGUAGES} | change))
