import pytest
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.whisper.encoder import LanguageIdentifier
from espnet2_lamer.whisper.lora import ExpertLinear, Mixture, Route, expert_state
from espnet2_lamer.whisper.transcription import transcribe
from tests.whisper.small_whisper import LANGUAGES, batch, make_model, speech, stir

READINGS = ("merged", "summed")


@pytest.mark.parametrize("weights", ["free", "softmax"])
@pytest.mark.parametrize("combination", READINGS)
@pytest.mark.parametrize("place", [0, 2])
def test_one_hot_weights_are_that_expert_to_the_bit(
    whisper_file, combination, weights, place
):
    shape = {"rank": 16, "alpha": 11.0, "targets": "all"}
    mole = stir(
        make_model(
            whisper_file,
            "mole",
            combination=combination,
            combination_weights=weights,
            shared_layers=3,
            **shape,
        )
    )
    with torch.no_grad():
        one_hot = torch.nn.functional.one_hot(torch.tensor(place), 3).float()
        mole.encoder.combination.logits.copy_(
            one_hot if weights == "free" else 1e4 * one_hot
        )
    experts = stir(make_model(whisper_file, **shape))
    route = Route((LANGUAGES[place],))
    waves, lengths = speech(0.6, 0.4)
    expected = experts.encoder.encode(waves, lengths, route).output
    assert torch.equal(mole.encoder.encode(waves, lengths, route).output, expected)


def test_the_readings_are_the_two_formulas():
    torch.manual_seed(0)
    from espnet2_lamer.whisper.config import WhisperLoraConfig

    config = WhisperLoraConfig(languages=LANGUAGES, rank=3, alpha=6.0)
    linear = ExpertLinear(torch.nn.Linear(5, 7), "x", config)
    for name in LANGUAGES:
        linear.add(name, 3)
        torch.nn.init.normal_(linear.experts[name].lora_A)
        torch.nn.init.normal_(linear.experts[name].lora_B)
    weights = torch.tensor([0.2, -0.5, 1.1])
    x = torch.randn(2, 4, 5)
    a = [linear.experts[n].lora_A[0] for n in LANGUAGES]
    b = [linear.experts[n].lora_B for n in LANGUAGES]
    sums = [sum(w * m for w, m in zip(weights, ms, strict=True)) for ms in (a, b)]
    products = [w * bi @ ai for w, ai, bi in zip(weights, a, b, strict=True)]
    for merged, update in ((True, sums[1] @ sums[0]), (False, sum(products))):
        found = linear(x, Mixture(LANGUAGES, weights, merged))
        expected = linear.base(x) + 2.0 * x @ update.T
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("combination", READINGS)
@pytest.mark.parametrize("weights", ["free", "softmax"])
def test_only_weights_and_identifier_train_and_all_of_them_do(
    whisper_file, combination, weights
):
    model = stir(
        make_model(
            whisper_file,
            "mole",
            combination=combination,
            combination_weights=weights,
        )
    )
    torch.testing.assert_close(
        model.encoder.combination.weights(), torch.full((2, 3), 1 / 3)
    )
    loss, stats, _ = model.train()(**batch())
    loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[1] for n in trained} == {"combination", "identifier"}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        if name in trained:
            assert parameter.grad.abs().sum() > 0, name
    expected = stats["loss_asr"] + stats["loss_identifier"]
    torch.testing.assert_close(loss.detach(), expected.view_as(loss))


def test_the_identifiers_loss_has_its_weight(whisper_file):
    losses = []
    for weight in (0.0, 0.5):
        model = stir(
            make_model(whisper_file, "mole", model_conf={"identifier_weight": weight})
        )
        loss, stats, _ = model(**batch())
        losses.append(loss.item())
    assert losses[1] - losses[0] == pytest.approx(
        0.5 * stats["loss_identifier"].item(), abs=1e-5
    )


def test_the_identifier_pools_real_frames_only():
    identifier = LanguageIdentifier(4, 8, 3)
    x = torch.randn(2, 6, 4)
    real = torch.arange(6) < torch.tensor([[6], [3]])
    logits = identifier(x, real)
    x[1, 3:] = torch.nan
    assert torch.equal(identifier(x, real), logits)
    mean = torch.stack([x[0].mean(0), x[1, :3].mean(0)])
    expected = mean
    for layer in identifier:
        expected = layer(expected)
    torch.testing.assert_close(logits, expected)


def test_the_posterior_does_not_depend_on_the_batch(whisper_file):
    model = stir(make_model(whisper_file, "mole"))
    waves, lengths = speech(0.6, 0.4, 0.5)
    together = model.encoder.encode(waves, lengths, None).logits
    for row, n in enumerate(lengths):
        alone = model.encoder.encode(
            waves[row : row + 1, :n], lengths[row : row + 1], None
        ).logits
        torch.testing.assert_close(together[row], alone[0], atol=2e-5, rtol=1e-5)


def _identify(model, place):
    with torch.no_grad():
        model.encoder.identifier[2].weight.zero_()
        model.encoder.identifier[2].bias.copy_(
            torch.nn.functional.one_hot(torch.tensor(place), 3).float()
        )


def test_a_given_language_overrules_the_identifier(whisper_file):
    model = stir(make_model(whisper_file, "mole"), size=1.0)
    waves, lengths = speech(0.6, 0.4)
    texts = {}
    for place, name in enumerate(LANGUAGES):
        _identify(model, place)
        agnostic = transcribe(model, waves, lengths)
        assert agnostic.languages == [name, name]
        assert agnostic.posterior.argmax(-1).tolist() == [place, place]
        texts[name] = agnostic.tokens
    for name in LANGUAGES:
        given = transcribe(model, waves, lengths, name)
        assert given.tokens == texts[name]
        assert given.posterior.argmax(-1).tolist() == [2, 2]
    assert texts["cmn"] != texts["yue"]


def test_layers_below_l1_are_shared_and_layers_above_are_not(whisper_file):
    waves, lengths = speech(0.6)
    for shared in (1, 2, 3):
        model = stir(make_model(whisper_file, "mole", shared_layers=shared))
        states = [
            model.encoder.encode(waves, lengths, Route((name,)), True).states
            for name in ("eng", "yue")
        ]
        same = [torch.equal(a, b) for a, b in zip(*states, strict=True)]
        assert same == [True] * shared + [False] * (3 - shared)


def test_more_shared_layers_than_layers_are_refused(whisper_file):
    with pytest.raises(RecipeError, match="lora.shared_layers: found 4.* at most 3"):
        make_model(whisper_file, "mole", shared_layers=4)


def test_experts_alone_identify_nothing(whisper_file):
    model = make_model(whisper_file)
    with pytest.raises(RecipeError, match="experts has no identifier"):
        transcribe(model, *speech(0.6))
    assert expert_state(model, "eng")
