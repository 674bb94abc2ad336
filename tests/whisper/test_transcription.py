from dataclasses import replace

import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.text import Prompts, tokenizer_of
from espnet2_lamer.whisper.transcription import transcribe
from tests.whisper.small_whisper import make_model, speech, stir

EOT = 50257
SOT, EN, ZH, TRANSCRIBE, NO_TIMESTAMPS = 50258, 50259, 50260, 50359, 50363


def _without_cache(model, waves, lengths, language, count):
    """Greedy decoding that computes everything again for every token."""
    routed = model.route(waves, lengths, [language])
    tokens = torch.empty(1, 0, dtype=torch.long)
    for step in range(count):
        encoded = replace(routed.encoded, lengths=None)
        logits = model.decoder.decode(encoded, routed.prompt, tokens).logits[0, -1]
        logits[EOT + 1 :] = -torch.inf
        if not step:
            logits[[220, EOT]] = -torch.inf
        best = logits.argmax()
        if best == EOT:
            break
        tokens = torch.cat([tokens, best.view(1, 1)], 1)
    return tokens[0].tolist()


def test_cached_batched_decoding_is_plain_decoding_one_by_one(whisper_file):
    model = stir(make_model(whisper_file), size=0.6)
    waves, lengths = speech(0.7, 0.4, 0.55, 0.5)
    languages = ["yue", "eng", "cmn", "yue"]
    found = transcribe(model, waves, lengths, languages, max_tokens=12)
    for row, language in enumerate(languages):
        n = lengths[row : row + 1]
        alone = waves[row : row + 1, : int(n)]
        assert found.tokens[row] == _without_cache(model, alone, n, language, 12)
    assert found.languages == languages
    assert len({tuple(row) for row in found.tokens}) > 1


def test_an_ended_text_stays_ended_while_others_go_on(whisper_file, monkeypatch):
    model = make_model(whisper_file)
    waves, lengths = speech(0.5, 0.5)
    script = [[11, 12], [EOT, 13], [14, 15], [16, EOT]]

    def decode(encoded, prompt, tokens, cache):
        logits = torch.zeros(2, 1, 51865)
        for row, token in enumerate(script.pop(0)):
            logits[row, 0, token] = 1.0
        return type("Decoded", (), {"logits": logits})

    monkeypatch.setattr(model.decoder, "decode", decode)
    found = transcribe(model, waves, lengths, "eng")
    assert found.tokens == [[11], [12, 13, 15]]
    assert not script


def test_a_text_is_bounded_by_its_audio_and_by_the_context(whisper_file):
    model = make_model(whisper_file)
    with torch.no_grad():  # one token for ever
        model.decoder.whisper.ln.weight.zero_()
        model.decoder.whisper.ln.bias.copy_(
            model.decoder.whisper.token_embedding.weight[1234]
        )
    waves, lengths = speech(0.5, 0.25, 4.0)
    found = transcribe(model, waves, lengths, "eng")
    # 20 tokens a second and 10 more; 48 places less the prompt's 4.
    assert [len(row) for row in found.tokens] == [20, 15, 44]
    assert set(found.tokens[0]) == {1234}
    assert [len(r) for r in transcribe(model, waves, lengths, "eng", 3).tokens] == [
        3
    ] * 3


@pytest.mark.parametrize("method", ["frozen", "multilingual"])
def test_without_identifier_whisper_chooses_among_the_configured_languages(
    whisper_file, method
):
    model = stir(make_model(whisper_file, method))
    waves, lengths = speech(0.6, 0.4)
    routed = model.route(waves, lengths, None)
    start = torch.full((2, 1), SOT)
    scores = model.decoder.decode(routed.encoded, start, start[:, :0]).logits
    scores = scores[:, 0, [EN, ZH]]
    english, chinese = scores.softmax(-1).unbind(-1)
    expected = torch.stack([english, chinese / 2, chinese / 2], -1)
    torch.testing.assert_close(routed.posterior, expected)
    # The likeliest token decides, although two languages share one.
    names = ["eng" if e > c else "cmn" for e, c in zip(english, chinese, strict=True)]
    assert routed.languages == names


def test_a_shared_token_is_chosen_where_it_is_the_likeliest(whisper_file, monkeypatch):
    model = make_model(whisper_file, "frozen")
    logits = torch.zeros(2, 1, 51865)
    logits[:, 0, EN] = torch.tensor([0.6, 0.4]).log()
    logits[:, 0, ZH] = torch.tensor([0.4, 0.6]).log()
    monkeypatch.setattr(
        model.decoder,
        "decode",
        lambda *arguments: type("Decoded", (), {"logits": logits}),
    )
    routed = model.route(*speech(0.5, 0.5), None)
    assert routed.languages == ["eng", "cmn"]
    torch.testing.assert_close(
        routed.posterior, torch.tensor([[0.6, 0.2, 0.2], [0.4, 0.3, 0.3]])
    )


def test_prompts_are_whispers(whisper_file):
    model = make_model(whisper_file)
    prompts = model.decoder.prompts
    found = prompts.for_languages(["eng", "yue"], torch.device("cpu")).tolist()
    assert found == [
        [SOT, EN, TRANSCRIBE, NO_TIMESTAMPS],
        [SOT, ZH, TRANSCRIBE, NO_TIMESTAMPS],
    ]
    tokenizer = tokenizer_of(51865)
    assert found[0] == list(tokenizer.sot_sequence_including_notimestamps)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("none", [SOT, TRANSCRIBE, NO_TIMESTAMPS]),
        ("en", [SOT, EN, TRANSCRIBE, NO_TIMESTAMPS]),
    ],
)
def test_a_student_has_one_prompt_for_all_languages(whisper_file, prompt, expected):
    model = make_model(whisper_file, "student", student_prompt=prompt)
    waves, lengths = speech(0.6, 0.4)
    for languages in (None, ["eng", "yue"]):
        routed = model.route(waves, lengths, languages)
        assert routed.prompt.tolist() == [expected] * 2
        assert routed.languages is None


def test_a_new_prompt_vector_starts_as_its_model_and_trains_with_its_expert(
    whisper_file,
):
    tokens = {"yue": "new:zh"}
    model = make_model(whisper_file, train_language="yue", language_tokens=tokens)
    old = make_model(whisper_file)
    waves, lengths = speech(0.6, 0.4)
    languages = ["yue", "eng"]

    def scores(one):
        routed = one.route(waves, lengths, languages)
        text = torch.tensor([[5], [6]])
        encoded = replace(routed.encoded, lengths=None)
        return one.decoder.decode(encoded, routed.prompt, text).logits

    assert torch.equal(scores(model), scores(old))
    vector = model.decoder.new_tokens["yue"]
    assert vector.requires_grad
    with torch.no_grad():
        vector.add_(1.0)
    changed = scores(model) != scores(old)
    assert changed[0].any() and not changed[1].any()
    other = make_model(whisper_file, train_language="cmn", language_tokens=tokens)
    assert not other.decoder.new_tokens["yue"].requires_grad


def test_new_prompt_vectors_are_their_languages_own_in_any_order(whisper_file):
    tokens = {"yue": "new:zh", "cmn": "new:en"}
    model = make_model(whisper_file, languages=["yue", "cmn"], language_tokens=tokens)
    prompt = model.decoder.prompts.for_languages(["cmn"], torch.device("cpu"))
    embedded = model.decoder._embed(prompt, prompt[:, :0], 0)
    english = prompt.clone()
    english[0, 1] = EN
    assert torch.equal(embedded, model.decoder._embed(english, prompt[:, :0], 0))


def test_a_token_that_whisper_lacks_is_named(whisper_file):
    with pytest.raises(RecipeError, match="language_tokens.yue: found 'yue'"):
        make_model(whisper_file, language_tokens={"yue": "yue"})
    config = make_model(whisper_file, language_tokens={"yue": "zh"}).config
    config.language_tokens["yue"] = "yue"
    assert Prompts(config, 51866).language_id("yue") == 50358  # large-v3 has one


def test_scores_of_a_hypothesis_are_the_decoders(whisper_file):
    model = stir(make_model(whisper_file))
    waves, lengths = speech(0.6)
    model.language = "cmn"
    memory, lengths = model.encode(waves, lengths)
    hypotheses = torch.tensor([[SOT, 5, 6], [SOT, 7, 8]])
    scores, _ = model.decoder.batch_score(
        hypotheses, [None, None], memory.expand(2, -1, -1)
    )
    logits, _ = model.decoder(
        memory.expand(2, -1, -1),
        lengths.expand(2),
        hypotheses,
        torch.tensor([3, 3]),
    )
    expected = logits[:, -1].clone()
    expected[:, EOT + 1 :] = -torch.inf
    torch.testing.assert_close(scores, expected.log_softmax(-1))
    single, _ = model.decoder.score(hypotheses[0], None, memory[0])
    torch.testing.assert_close(single, scores[0], atol=1e-5, rtol=1e-5)


def test_a_hypothesis_ends_where_the_context_does(whisper_file):
    model = make_model(whisper_file)
    model.language = "eng"
    memory, _ = model.encode(*speech(0.6))
    long = torch.full((1, 1 + 45), 5)  # prompt of 4 and 44 tokens fill 48
    scores, _ = model.decoder.batch_score(long, [None], memory)
    assert scores[0, EOT] == 0.0 and scores.exp().sum() == 1.0
    scores, _ = model.decoder.batch_score(long[:, :-1], [None], memory)
    assert (scores > -torch.inf).sum() == EOT + 1
    with pytest.raises(RecipeError, match="text of 45 tokens: Whisper takes 48"):
        model.decoder(memory, torch.tensor([30]), long, torch.tensor([46]))


def test_as_many_languages_as_utterances_are_needed(whisper_file):
    with pytest.raises(RecipeError, match="languages: found 1, expected 2"):
        transcribe(make_model(whisper_file), *speech(0.6, 0.4), languages=["eng"])
