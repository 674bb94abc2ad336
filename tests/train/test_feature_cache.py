"""Features of the frozen convolution stack from disk: the same training, cheaper."""

import logging
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.hubert import LamerHubertTask
from espnet2_lamer.tasks.option_check import check_options
from espnet2_lamer.train import feature_cache
from espnet2_lamer.train.feature_cache import use_feature_cache
from espnet2_lamer.train.shares import measure_shares
from tests.train.small_training import CONFIG, make_corpus

ENCODER = CONFIG["encoder_conf"]
CROP, BUCKET = 8000, 1600
CHANNELS = 8


@pytest.fixture(autouse=True)
def one_thread():
    """With several, a product over a batch may be summed in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture
def own_corpus(tmp_path):
    """A corpus that the test may change."""
    make_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def computed(monkeypatch):
    """Utterances whose features were computed for the cache, in order."""
    found, real = [], feature_cache._Plan._compute

    def compute(self, speech, rows, path):
        found.extend(row[0] for row in rows)
        return real(self, speech, rows, path)

    monkeypatch.setattr(feature_cache._Plan, "_compute", compute)
    return found


def use(parts, gigabytes=1.0, directory=None):
    parts.options.feature_cache_gb = gigabytes
    parts.options.feature_cache_dir = directory
    factories = {"train": parts.train, "valid": parts.valid}
    use_feature_cache(parts.model, factories, parts.options, "cpu")
    return parts


def train(parts, epochs=1):
    """Losses of every update and validation, and how many rows were served."""
    parts.model.keep_frozen()
    torch.manual_seed(7)
    found, rows = [], {"features": 0, "speech": 0}
    for epoch in range(1, epochs + 1):
        parts.model.train()
        for _, batch, _ in parts.train.iterate(epoch):
            for key in rows:
                rows[key] += len(batch.get(key, ()))
            loss, _, _ = parts.model(**batch)
            loss.backward()
            parts.optimizer.step()
            parts.optimizer.zero_grad()
            found.append(loss.item())
        parts.model.eval()
        with torch.no_grad():
            for _, batch in parts.valid.build_iter(epoch):
                found.append(parts.model(**batch)[0].item())
    return found, rows


def whole(corpus):
    """Utterances that training hears whole, by their samples."""
    lines = (corpus / "speech_shape").read_text().split("\n")[:-1]
    samples = {line.split()[0]: int(line.split()[1]) for line in lines}
    return {utt: count for utt, count in samples.items() if count <= CROP}


def files(directory):
    # Training and validation have stores of their own, with files of the same names.
    found = sorted(directory.rglob("*.bin"))
    return {p.relative_to(directory): p.read_bytes() for p in found}


@pytest.mark.parametrize("mode", ["layer_norm", "group_norm"])
def test_losses_are_those_without_a_cache_to_the_bit(make_parts, mode):
    """Group norm hears padding."""
    options = {"encoder_conf": ENCODER | {"extractor_mode": mode}}
    options |= {"amp_dtype": "none", "model_conf": {"unmasked_weight": 0.5}}
    plain, _ = train(make_parts(**options), epochs=2)
    found, rows = train(use(make_parts(**options)), epochs=2)
    assert found == plain and len(set(found)) > 10
    # Some are cropped, and some are in batches that pad them further.
    assert rows["features"] > 10 and rows["speech"] > 10


def test_half_precision_is_stored_and_the_losses_are_those_up_to_rounding(make_parts):
    plain, _ = train(make_parts(amp_dtype="bf16"))
    found, rows = train(use(parts := make_parts(amp_dtype="bf16")))
    assert parts.train.dataset.cache.shards[0].dtype == torch.bfloat16
    assert found == pytest.approx(plain, rel=1e-2) and rows["features"] > 10


def test_what_is_stored_is_what_the_stack_gives_for_the_padded_utterance(
    make_parts, corpus
):
    parts = use(make_parts(amp_dtype="none"))
    cache, extractor = parts.train.dataset.cache, parts.model.encoder.wav2vec2
    there = {utt for n, utt in enumerate(parts.train.lengths) if cache.has([n])[0]}
    assert there == set(whole(corpus))
    for utt, samples in whole(corpus).items():
        wave = torch.zeros(1, min(-(-samples // BUCKET) * BUCKET, CROP))
        wave[0, :samples] = torch.from_numpy(
            soundfile.read(corpus / f"{utt}.wav", dtype="float32")[0]
        )
        with torch.no_grad():
            plain, _ = extractor.feature_extractor(wave, torch.tensor([samples]))
        found = cache.read(utt)
        frames = (samples - 400) // 320 + 1
        assert found["samples"] == samples
        assert torch.equal(found["features"], plain[0, :frames])


def test_only_rows_that_fill_their_batch_are_served(make_parts):
    parts = use(make_parts())
    for names, batch, _ in parts.train.iterate(1):
        served = [0] * len(names)
        longest = min(max(parts.train.lengths[name] for name in names), CROP)
        padded = min(-(-longest // BUCKET) * BUCKET, CROP)
        for row, name in enumerate(names):
            samples = parts.train.lengths[name]
            own = min(-(-samples // BUCKET) * BUCKET, CROP)
            served[row] = int(samples <= CROP and own == padded)
        assert len(batch.get("features", ())) == sum(served)
        assert len(batch["speech"]) == len(names) - sum(served)
        if any(served):
            places = batch["feature_places"].tolist()
            first = len(batch["speech"])
            assert [int(place >= first) for place in places] == served
            assert sorted(places) == list(range(len(names)))


def test_the_share_that_is_served_is_told_before_an_epoch(make_parts):
    parts = use(make_parts())
    served = sum(
        parts.train.lengths[name]
        for names, batch, _ in parts.train.iterate(1)
        for name, place in zip(names, batch.get("feature_places", []), strict=False)
        if place >= len(batch["speech"])
    )
    assert measure_shares(parts.train, 1).served == pytest.approx(served / 16000)


def test_the_log_tells_what_is_needed_cached_and_left_out(make_parts, corpus, caplog):
    use(make_parts(amp_dtype="none"))
    count = len(whole(corpus))
    frames = sum((n - 400) // 320 + 1 for n in whole(corpus).values())
    size = f"{frames * CHANNELS * 4 / 1e3:.1f} kB"
    assert f"[train]: {count} of 24 utterances" in caplog.text
    assert f"take {size} (float32, 1.6 kB per second of audio)" in caplog.text
    assert f"{24 - count} utterances are longer than max_sample_size" in caplog.text
    assert "are to the bit what the network gives without a cache" in caplog.text


def test_a_full_cache_warns_and_the_rest_is_computed(make_parts, corpus, caplog):
    plain, _ = train(make_parts(amp_dtype="none"))
    frames = {utt: (n - 400) // 320 + 1 for utt, n in whole(corpus).items()}
    valid = 0
    for line in (corpus / "text_shape").read_text().splitlines():
        valid += int(line.split()[1])
    # All of validation, and half of training.
    room = 4 * CHANNELS * (valid + sum(frames.values()) / 2) / 1e9
    parts = use(make_parts(amp_dtype="none"), room)
    kept = parts.train.dataset.cache.place >= 0
    assert 0 < kept.sum() < len(frames)
    samples = parts.train.lengths.samples
    assert samples[kept].max() <= -(-samples[~kept].min() // BUCKET) * BUCKET
    left = len(frames) - kept.sum()
    assert f"feature_cache_gb is full: {left} utterances of train" in caplog.text
    found, rows = train(parts)
    assert found == plain and rows["features"] > 0
    assert sum(p.stat().st_size for p in parts.output.rglob("*.bin")) <= room * 1e9


def test_no_room_at_all_trains_as_before(make_parts, caplog):
    parts = use(make_parts(amp_dtype="none"), 1e-9)
    assert parts.train.dataset.cache is None and parts.valid.dataset.cache is None
    assert "feature_cache_gb is full: 24 utterances of valid" in caplog.text
    assert train(parts)[1]["features"] == 0


def test_killed_halfway_it_goes_on_with_what_is_whole(make_parts, computed):
    parts = make_parts(amp_dtype="none")
    real = feature_cache._Plan._compute

    def killed(self, speech, rows, path):
        if len(computed) > 10:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, speech, rows, path)

    pid = os.fork()
    if not pid:
        feature_cache._Plan._compute = killed
        use(parts)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    there = files(parts.output)
    assert 0 < len(there) < 24
    use(parts)
    total = 24 + int((parts.train.dataset.cache.place >= 0).sum())
    assert len(computed) == total - 11
    assert there.items() <= files(parts.output).items()
    assert not [*parts.output.rglob("*.tmp")]
    use(other := make_parts(amp_dtype="none"))
    assert len(computed) == total - 11
    assert train(other)[0] == train(make_parts(amp_dtype="none"))[0]


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_file_is_made_again(make_parts, computed, damage):
    use(parts := make_parts())
    before = files(parts.output)
    path = next(parts.output.rglob("00003.bin"))
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-2] if damage == "short" else data)
    computed.clear()
    use(make_parts())
    assert 0 < len(computed) < 5
    assert files(parts.output) == before


def test_another_base_has_its_own(make_parts, computed):
    parts = use(make_parts())
    count = len(computed)
    use(make_parts())
    assert len(computed) == count
    other = make_parts(seed=1)
    use(other)
    assert len(computed) == 2 * count
    one, two = (p.train.dataset.cache.shards[0] for p in (parts, other))
    assert not torch.equal(one, two)
    # The stack decides, not what comes after it, or what trains.
    deeper = make_parts()
    with torch.no_grad():
        deeper.model.encoder.wav2vec2.encoder.transformer.layer_norm.weight += 1.0
    use(deeper)
    assert len(computed) == 2 * count


def test_the_head_only_control_shares_it(make_parts, computed):
    control = ENCODER | {"lamer": {"allocation": 0}}
    control = {"encoder_conf": control, "amp_dtype": "none"}
    plain, _ = train(make_parts(**control))
    parts = use(make_parts(amp_dtype="none"))
    count = len(computed)
    again = use(make_parts(**control), 1.0, parts.output / "feature_cache")
    assert len(computed) == count
    found, rows = train(again)
    assert found == plain and rows["features"] > 0


def test_changed_audio_is_computed_anew(make_parts, own_corpus, computed):
    options = {"corpus": own_corpus, "amp_dtype": "none"}
    parts = use(make_parts(**options))
    utt, samples = min(whole(own_corpus).items(), key=lambda item: item[1])
    before = parts.train.dataset.cache.read(utt)["features"].clone()
    noise = np.random.default_rng(5).normal(0, 0.1, samples)
    soundfile.write(own_corpus / f"{utt}.wav", noise, 16000)
    computed.clear()
    plain, _ = train(make_parts(**options))
    parts = use(make_parts(**options))
    assert utt in computed and len(computed) < 10
    assert not torch.equal(parts.train.dataset.cache.read(utt)["features"], before)
    assert train(parts)[0] == plain


def test_two_that_need_it_at_once_make_it_once(make_parts, tmp_path, computed):
    parts = make_parts()
    pids = []
    for number in range(2):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                use(parts, 1.0, tmp_path / "shared")
                (tmp_path / f"{number}.count").write_text(str(len(computed)))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    counts = sorted(int((tmp_path / f"{n}.count").read_text()) for n in range(2))
    use(parts, 1.0, tmp_path / "shared")
    total = 24 + int((parts.train.dataset.cache.place >= 0).sum())
    # Of validation and of training whoever comes first makes all.
    assert sum(counts) == total and not computed


def test_distillation_has_the_loss_without_a_cache(make_parts):
    conf = {"model_conf": {"distill_weight": 1.0}, "amp_dtype": "none"}
    conf |= {"replay_langs": ["cmn"]}
    plain, _ = train(make_parts(**conf))
    found, rows = train(use(make_parts(**conf)))
    assert found == plain and rows["features"] > 0


@pytest.mark.slow
def test_a_compiled_network_reads_features_as_well(make_parts):
    conf = {"encoder_conf": ENCODER | {"compile": True}, "amp_dtype": "none"}
    found = []
    for parts in (make_parts(**conf), use(make_parts(**conf))):
        encoder = parts.model.encoder
        encoder.__dict__["_compiled"] = torch.compile(
            encoder._network, backend="eager", dynamic=True
        )
        found.append(train(parts)[0])
    assert found[0] == found[1]


def test_loader_processes_serve_the_same(make_parts):
    one, two = (use(make_parts(num_workers=count)) for count in (0, 2))
    batches = [[batch for _, batch, _ in p.train.iterate(1)] for p in (one, two)]
    assert any("features" in batch for batch in batches[0])
    for first, second in zip(*batches, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_was_made_of_another_network_is_refused(make_parts, monkeypatch):
    # As if a folder had been renamed by hand.
    monkeypatch.setattr(
        feature_cache._Plan, "directory", lambda self, root: root / self.part
    )
    use(make_parts())
    with pytest.raises(RecipeError, match="feature_cache_gb: utterance .* differs"):
        use(make_parts(seed=1))


def test_a_stack_that_trains_is_refused_and_a_frozen_one_is_not(make_parts):
    full = ENCODER | {"lamer": None}
    with pytest.raises(RecipeError, match="feature_cache_gb: found 1 .* trains"):
        use(make_parts(encoder_conf=full))
    parts = make_parts(encoder_conf=full)
    parts.model.encoder.wav2vec2.feature_extractor.requires_grad_(False)
    assert train(use(parts))[1]["features"] > 0


def test_audio_without_files_of_its_own_and_noise_are_refused(make_parts):
    parts = make_parts()
    (path, name, _), *others = parts.options.train_data_path_and_name_and_type
    parts.options.train_data_path_and_name_and_type = [
        (path, name, "kaldi_ark"),
        *others,
    ]
    with pytest.raises(RecipeError, match="speech of type kaldi_ark, expected sound"):
        use(parts)
    for key, value, text in (
        ("noise_scp", "noise.scp", "noise_scp: found 'noise.scp'.*same in every epoch"),
        ("feature_cache_gb", -1.0, "feature_cache_gb: found -1.0, expected 0 or more"),
    ):
        args = make_parts(feature_cache_gb=1.0).args
        setattr(args, key, value)
        with pytest.raises(RecipeError, match=text):
            check_options(LamerHubertTask.get_parser(), args)


def test_a_training_of_less_than_two_passes_is_warned(make_parts, caplog):
    use(make_parts(max_epoch=1))
    assert "makes 1.00 passes over its data: caching what is heard once" in caplog.text


def test_stores_of_others_are_named(make_parts, caplog):
    parts = use(make_parts())
    assert "of other bases" not in caplog.text
    use(make_parts(seed=1), 1.0, parts.output / "feature_cache")
    assert "are of other bases, data or precisions" in caplog.text
    shutil.rmtree(parts.output / "feature_cache")
