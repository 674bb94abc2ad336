"""A cache that is written in place gives what growing tensors, or none, gave."""

import pytest
import torch

from espnet2_lamer.compat import espnet_nets
from espnet2_lamer.whisper.cache import BlockCache, DecoderCache
from espnet2_lamer.whisper.transcription import transcribe
from tests.whisper.small_whisper import make_model, save_whisper, speech, stir

EOT, SOT = 50257, 50258


class Growing(BlockCache):
    """A token is appended by copying all before it."""

    def __init__(self):
        super().__init__(0)
        self.past = None

    def append(self, keys, values):
        if self.past is not None:
            keys, values = (
                torch.cat(pair, 2)
                for pair in zip(self.past, (keys, values), strict=True)
            )
        self.past, self.length = (keys, values), keys.shape[2]
        return self.past


class GrowingCache(DecoderCache):
    def __init__(self, blocks):
        super().__init__(blocks, 0)
        self.blocks = [Growing() for _ in range(blocks)]


def often_ending(model, seed):
    """Let the end be likely at places that depend on the audio."""
    weight = model.decoder.whisper.token_embedding.weight
    with torch.no_grad():
        weight[EOT] = 4 * weight[torch.randint(20000, (1,), generator=_seeded(seed))]
    return model


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[0, 1, 2])
def model(request, tmp_path):
    """Models of different sizes and weights."""
    seed = request.param
    sizes = {"n_text_layer": 1 + seed, "n_text_head": 2**seed, "n_text_ctx": 32}
    file = save_whisper(tmp_path / "whisper.pt", seed, **sizes)
    return often_ending(stir(make_model(file, seed=seed), seed, 0.6), seed)


def decode_and_note(model, *arguments):
    """Texts, and the logits of every step."""
    logits = []
    theirs = model.decoder.decode

    def decode(*args, **kwargs):
        found = theirs(*args, **kwargs)
        logits.append(found.logits[:, -1])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.decoder, "decode", decode)
        return transcribe(model, *arguments).tokens, torch.stack(logits)


def test_a_batch_with_different_ends_has_the_tokens_and_scores_of_growing_tensors(
    model, monkeypatch
):
    waves, lengths = speech(0.7, 0.3, 0.5, 0.45, 0.6)
    languages = ["yue", "eng", "cmn", "yue", "eng"]
    found, scores = decode_and_note(model, waves, lengths, languages)
    blocks = len(model.decoder.whisper.blocks)
    monkeypatch.setattr(model.decoder, "new_cache", lambda size: GrowingCache(blocks))
    expected, old_scores = decode_and_note(model, waves, lengths, languages)
    assert found == expected
    assert len({len(row) for row in found}) > 1
    torch.testing.assert_close(scores, old_scores, rtol=0, atol=1e-5)


@torch.no_grad()
def plain_beam_search(model, memory, beam, most):
    """Keep the best ``beam`` texts of each length; everything is computed anew.

    As ESPnet's with ``maxlenratio`` of ``most`` tokens: what has not ended then ends.
    Returns texts with their scores, best first.
    """
    decoder = model.decoder
    running, ended = [([SOT], 0.0)], []
    for step in range(most):
        grown = []
        for text, score in running:
            logits, _ = decoder(
                memory, torch.tensor([memory.shape[1]]), *_as_batch(text)
            )
            logits = decoder.prompts.suppress(logits[:, -1], first=not step)
            best = logits[0].log_softmax(-1).topk(beam)
            for more, token in zip(*map(torch.Tensor.tolist, best), strict=True):
                grown.append(([*text, token], score + more))
        grown = sorted(grown, key=lambda item: -item[1])[:beam]
        if step == most - 1:
            grown = [([*text, EOT], score) for text, score in grown]
        ended += [item for item in grown if item[0][-1] == EOT]
        running = [item for item in grown if item[0][-1] != EOT]
        if not running:
            break
    return sorted(ended, key=lambda item: -item[1])


def _as_batch(text):
    return torch.tensor([text]), torch.tensor([len(text)])


def espnet_beam_search(model, memory, beam, most, batched=True):
    names = ("BatchBeamSearch", "batch_beam_search")
    if not batched:
        names = ("BeamSearch", "beam_search")
    search = getattr(espnet_nets(names[1]), names[0])(
        beam_size=beam,
        weights={"decoder": 1.0},
        scorers={"decoder": model.decoder},
        sos=SOT,
        eos=EOT,
        vocab_size=model.decoder.prompts.n_vocab,
    )
    # A fixed number of steps: ESPnet counts negative ratios as numbers.
    found = search(memory[0], maxlenratio=-most)
    return [(hyp.yseq.tolist(), float(hyp.score)) for hyp in found]


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("batched", [True, False])
def test_a_beam_search_has_the_texts_and_scores_of_a_plain_one(model, beam, batched):
    ends = set()
    for seconds, language in ((0.6, "yue"), (0.4, "eng")):
        model.language = language
        memory, _ = model.encode(*speech(seconds, seed=beam))
        found = espnet_beam_search(model, memory, beam, 9, batched)
        expected = plain_beam_search(model, memory, beam, 9)
        assert len(found) >= beam
        for (text, score), (plain, plain_score) in zip(
            found[:beam], expected[:beam], strict=True
        ):
            assert text == plain
            # As above, 1e-5 for a step's score.
            assert score == pytest.approx(plain_score, abs=1e-5 * (len(text) - 1))
        ends |= {len(text) for text, _ in found}
    assert len(ends) > 1 or beam == 1


def test_the_beam_goes_on_in_one_memory_and_reads_the_audio_once(model, monkeypatch):
    """No tensor is taken per step, and keys of the audio are computed once."""
    model.language = "eng"
    memory, _ = model.encode(*speech(0.6))
    places, asked = set(), []
    append = BlockCache.append

    def noted(cache, keys, values):
        views = append(cache, keys, values)
        places.add((id(cache), views[0].shape[0] > 1, views[0].data_ptr()))
        return views

    monkeypatch.setattr(BlockCache, "append", noted)
    attention = model.decoder.whisper.blocks[0].cross_attn
    attention.key.register_forward_hook(lambda *_: asked.append(1))
    espnet_beam_search(model, memory, 5, 9)
    # The first step has one hypothesis, the others up to five.
    assert len(places) == 2 * len(model.decoder.whisper.blocks)
    assert len(asked) == 1


def test_hypotheses_of_any_order_and_age_are_scored_right(model):
    """States of another step, of two caches or none are no fault."""
    model.language = "eng"
    memory, _ = model.encode(*speech(0.5))
    decoder = model.decoder

    def scores(ys, states):
        xs = memory.expand(len(ys), -1, -1)
        found, states = decoder.batch_score(torch.tensor(ys), states, xs)
        plain, _ = decoder.batch_score(torch.tensor(ys), [None] * len(ys), xs)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        return states

    (first,) = scores([[SOT]], [None])
    a, b, c = scores([[SOT, 5], [SOT, 6], [SOT, 7]], [first] * 3)
    scores([[SOT, 7, 1], [SOT, 5, 2], [SOT, 7, 3], [SOT, 6, 4]], [c, a, c, b])
    # The same step once more: its cache has gone on.
    old = scores([[SOT, 6, 1], [SOT, 5, 2]], [b, a])
    (other,) = scores([[SOT, 8, 9]], [None])
    scores([[SOT, 6, 1, 1], [SOT, 8, 9, 1]], [old[0], other])
    scores([[SOT, 6, 1, 1], [SOT, 5, 2, 1]], [old[0], None])


def test_a_full_cache_says_so():
    cache = BlockCache(3)
    new = torch.zeros(1, 2, 2, 4)
    cache.append(new, new)
    with pytest.raises(ValueError, match="4 tokens in a cache for 3"):
        cache.append(new, new)
