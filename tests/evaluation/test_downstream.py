"""A head trained on stored features becomes a waveform-in model with the same output.

One process, one trained head (module fixture): importing ESPnet's task and training
are the slow parts.
"""

import copy
import json
import logging
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import decoding, downstream, feature_store
from espnet2_lamer.evaluation.ctc_prefix import greedy_prefix_search
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.upstream import Upstream

TINY = {
    "hubert": {
        "extractor_mode": "layer_norm",
        "extractor_conv_layer_config": [[8, 10, 5]] + [[8, 3, 2]] * 4 + [[8, 2, 2]] * 2,
        "encoder_embed_dim": 16,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_ff_interm_features": 32,
        "encoder_pos_conv_kernel": 8,
        "encoder_pos_conv_groups": 2,
    },
    "lamer": None,
    "final_norm": True,
}
CONFIG = {
    "normalize": "utterance_mvn",
    "preencoder": "linear",
    "preencoder_conf": {"output_size": 16},
    "encoder": "transformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "num_blocks": 1,
        "input_layer": "conv2d2",
    },
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0},
    "amp_dtype": "bf16",
    "batch_type": "sorted",
    "batch_size": 3,
    "num_workers": 0,
    "max_epoch": 3,
    "num_iters_per_epoch": 30,
    "keep_nbest_models": 2,
    "best_model_criterion": [["valid", "loss", "min"]],
    "optim": "adam",
    "optim_conf": {"lr": 0.01},
    "use_matplotlib": False,
    "use_tensorboard": False,
    "num_att_plot": 0,
}
GREEDY = {"beam_size": 1, "ctc_weight": 1.0, "lm_weight": 0.0}
# Three "letters" that differ in pitch, so that a head can learn them.
PITCH = {"A": 200.0, "B": 800.0, " ": 2500.0}


def write_set(directory, prefix, count, seed, lang="eng"):
    rng = np.random.default_rng(seed)
    wavs, texts = {}, {}
    for number in range(count):
        utt = f"{prefix}_{number:02d}"
        text = "A" + "".join(rng.choice(list(PITCH), size=rng.integers(1, 4))) + "B"
        pieces = [
            np.sin(2 * np.pi * PITCH[c] * np.arange(4800 + 80 * number) / 16000)
            for c in text
        ]
        audio = np.concatenate(pieces) + 0.01 * rng.standard_normal(
            sum(map(len, pieces))
        )
        path = directory / "audio" / f"{utt}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * audio, 16000)
        wavs[utt], texts[utt] = str(path), text
    write_table(directory / "wav.scp", wavs)
    write_table(directory / "text", texts)
    write_table(directory / "utt2lang", dict.fromkeys(wavs, lang))
    return directory


@pytest.fixture(scope="module")
def upstream():
    torch.manual_seed(0)
    return Upstream.from_architecture(TINY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, upstream):
    root = tmp_path_factory.mktemp("head")
    write_set(root / "train", "train", 9, 1)
    write_set(root / "dev", "dev", 4, 2)
    (root / "head.yaml").write_text(yaml.safe_dump(CONFIG))
    (root / "decode.yaml").write_text(yaml.safe_dump(GREEDY))
    run_training(root, upstream)
    return root


def run_training(root, upstream, **options):
    return downstream.train_head(
        upstream,
        root / "train",
        root / "dev",
        root / "store",
        root / "exp",
        root / "head.yaml",
        downstream.HeadOptions(**options),
    )


def samples_of(data_dir):
    return feature_store.count_samples(data_dir / "wav.scp")


# --- feature store ------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 2e-3)])
def test_store_holds_the_frontends_tensors(tmp_path, upstream, dtype, error):
    from espnet2_lamer.asr.frontend.states import upstream_states

    data = write_set(tmp_path / "set", "utt", 3, 0)
    store = feature_store.store_features(upstream, "all", data, tmp_path / "s", dtype)
    found = kaldiio.load_scp(str(store.scp))
    shapes = read_table(store.shape)
    assert list(shapes) == sorted(found)
    for utt, path in read_table(data / "wav.scp").items():
        wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        states, _ = upstream_states(
            upstream, wav[None], torch.tensor([len(wav)]), "all"
        )
        assert found[utt].dtype == dtype
        assert shapes[utt] == f"{-(-len(wav) // 320)},48"
        np.testing.assert_allclose(found[utt], states[0], atol=error, rtol=error)


def test_store_is_found_again_and_belongs_to_one_upstream_layer_set_and_dtype(
    tmp_path, upstream, monkeypatch
):
    data = write_set(tmp_path / "set", "utt", 2, 0)
    other_data = write_set(tmp_path / "other", "utt", 2, 5)
    torch.manual_seed(9)
    other = Upstream.from_architecture(TINY)
    keys = [
        (upstream, 1, data, "float32"),
        (upstream, 2, data, "float32"),
        (upstream, 1, other_data, "float32"),
        (upstream, 1, data, "float16"),
        (other, 1, data, "float32"),
    ]

    def store(model, layer, directory, dtype):
        return feature_store.store_features(
            model, layer, directory, tmp_path / "s", dtype
        )

    first = [store(*key) for key in keys]
    assert len({s.directory for s in first}) == len(keys)

    def fail(*_):
        raise AssertionError("features were computed again")

    monkeypatch.setattr(feature_store, "_compute", fail)
    assert [store(*key) for key in keys] == first


def test_half_written_store_is_finished_not_used(tmp_path, upstream, monkeypatch):
    data = write_set(tmp_path / "set", "utt", 4, 0)
    # One shard per utterance.
    monkeypatch.setattr(feature_store, "_SHARD_SECONDS", 0)
    compute, calls = feature_store._compute, []

    def die_at_third(upstream, layer, shard, device):
        calls.append([utt for utt, _, _ in shard])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(upstream, layer, shard, device)

    monkeypatch.setattr(feature_store, "_compute", die_at_third)
    arguments = (upstream, 1, data, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        feature_store.store_features(*arguments)
    (unfinished,) = (tmp_path / "s").glob("*.unfinished")
    assert not (unfinished / "info.json").exists()
    store = feature_store.store_features(*arguments)
    assert list((tmp_path / "s").glob("[!.]*")) == [store.directory]
    assert len(calls) == 5 and calls[2] == calls[3]  # two finished shards were kept
    assert sorted(kaldiio.load_scp(str(store.scp))) == sorted(read_table(data / "text"))


def test_size_is_told_before_features_are_computed(tmp_path, upstream, caplog):
    data = write_set(tmp_path / "set", "utt", 1, 0)
    with caplog.at_level(logging.INFO):
        feature_store.store_features(upstream, "all", data, tmp_path / "s")
    (count,) = (n for _, _, n in samples_of(data))
    frames = -(-count // 320)
    assert f"{frames} frames x 48 values, float32: {frames * 48 * 4 / 1e6:.1f} MB" in (
        caplog.text
    )


def test_unusable_audio_is_named(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 1, 0)
    path = read_table(data / "wav.scp")["utt_00"]
    arguments = (upstream, 1, data, tmp_path / "s")
    soundfile.write(path, np.zeros(8000), 8000)
    with pytest.raises(RecipeError, match=f"{path}: found 8000 Hz"):
        feature_store.store_features(*arguments)
    Path(path).write_bytes(b"")
    with pytest.raises(RecipeError, match="utt_00: cannot read"):
        feature_store.store_features(*arguments)
    with pytest.raises(RecipeError, match="expected float32 or float16"):
        feature_store.store_features(*arguments, dtype="int8")
    assert not (tmp_path / "s").exists()


def test_values_beyond_float16_are_refused(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 1, 0)
    loud = copy.deepcopy(upstream)
    loud.extract_features = lambda wavs, lengths: (
        [torch.full((1, 10, 16), 1e5)] * 3,
        torch.tensor([10]),
    )
    with pytest.raises(
        RecipeError, match="utt_00: a feature does not fit into float16"
    ):
        feature_store.store_features(loud, 1, data, tmp_path / "s", "float16")


def test_a_store_of_another_width_is_refused_and_left_as_it_is(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 2, 0)
    arguments = (upstream, "all", data, tmp_path / "s")
    store = feature_store.store_features(*arguments)
    path = store.directory / "info.json"
    info = json.loads(path.read_text()) | {"dim": 24}
    path.write_text(json.dumps(info))
    before = {p: p.read_bytes() for p in store.directory.iterdir()}
    with pytest.raises(RecipeError, match="info.json: dim: found 24, expected 16"):
        feature_store.store_features(*arguments)
    assert {p: p.read_bytes() for p in store.directory.iterdir()} == before


def test_the_planned_size_is_that_of_the_arrays(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 3, 0)
    for dtype in ("float32", "float16"):
        arguments = (upstream, "all", data, tmp_path / "s", dtype)
        plan = feature_store.plan_store(*arguments)
        assert not plan.stored
        store = feature_store.store_features(*arguments)
        arrays = kaldiio.load_scp(str(store.scp)).values()
        assert sum(a.nbytes for a in arrays) == pytest.approx(1e9 * plan.gigabytes)
        assert feature_store.plan_store(*arguments).stored


# --- heads --------------------------------------------------------------------


def test_head_learns_and_its_loss_is_reported_by_espnet(trained):
    log = (trained / "exp" / "train.log").read_text()
    assert "3epoch results" in log
    stats = torch.load(trained / "exp" / "checkpoint.pth", weights_only=True)[
        "reporter"
    ]["stats"]
    assert stats[3]["train"]["loss"] < 0.6 * stats[1]["train"]["loss"]


def test_final_config_names_no_path_and_holds_upstream_and_tokens(trained, upstream):
    config = yaml.safe_load((trained / "exp/final/config.yaml").read_text())

    def strings(value):
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list):
            for item in value:
                yield from strings(item)
        elif isinstance(value, str):
            yield value

    assert not [s for s in strings(config) if str(trained) in s or s.startswith("/")]
    assert config["frontend"] == "lamer_upstream"
    assert config["frontend_conf"]["upstream_conf"] == upstream.architecture()
    assert config["token_list"][0] == "<blank>" and "<space>" in config["token_list"]
    weights = torch.load(trained / "exp/final/model.pth", weights_only=True)
    for key, value in upstream.state_dict().items():
        assert torch.equal(weights[f"frontend.upstream.{key}"], value)


def test_final_model_encodes_waveforms_as_the_head_encodes_stored_features(trained):
    from espnet2_lamer.tasks.asr import LamerASRTask

    final = decoding.load_speech2text(trained / "exp/final", GREEDY).asr_model
    stored, _ = LamerASRTask.build_model_from_file(
        trained / "exp/config.yaml", trained / "exp/valid.loss.ave.pth"
    )
    stored.eval()
    # The final model is ESPnet's own and knows no amp_dtype.
    stored.encoder.forward = type(stored.encoder).forward.__get__(stored.encoder)
    features = kaldiio.load_scp(str(trained / "exp/data/dev/feats.scp"))
    for utt, path in read_table(trained / "dev" / "wav.scp").items():
        wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        feats = torch.from_numpy(features[utt].copy())
        with torch.no_grad():
            expected, _ = stored.encode(feats[None], torch.tensor([len(feats)]))
            found, _ = final.encode(wav[None], torch.tensor([len(wav)]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_finished_head_is_kept_and_changed_inputs_train_anew(
    trained, upstream, monkeypatch
):
    runs = []
    monkeypatch.setattr(
        downstream, "_run_espnet", lambda cmd, directory: runs.append(cmd)
    )
    before = (trained / "exp/final/model.pth").stat().st_mtime_ns
    assert run_training(trained, upstream) == trained / "exp/final"
    assert not runs
    assert (trained / "exp/final/model.pth").stat().st_mtime_ns == before
    copied = trained.parent / "copy"
    import shutil

    shutil.copytree(trained, copied)
    with pytest.raises(RecipeError, match="training wrote no valid.loss.ave.pth"):
        run_training(copied, upstream, seed=1)
    assert len(runs) == 1 and not (copied / "exp/final").exists()
    # The earlier head is put aside, not overwritten.
    (aside,) = copied.glob("exp.old-*")
    assert (aside / "final/model.pth").is_file()


def test_interrupted_head_goes_on_after_its_last_epoch(trained, upstream, tmp_path):
    import shutil

    root = tmp_path / "interrupted"
    shutil.copytree(trained, root, symlinks=True)
    # State after epoch 3 of 4: the config asks for one more epoch than was done.
    config = {**CONFIG, "max_epoch": 4}
    (root / "head.yaml").write_text(yaml.safe_dump(config))
    inputs = json.loads((root / "exp/inputs.json").read_text())
    inputs["config"] = downstream.sha256_file(root / "head.yaml")
    # The copy's audio has the same bytes but other paths: same texts, other stores.
    shutil.rmtree(root / "exp/final")
    for name in ("train", "dev"):
        table = read_table(root / name / "wav.scp")
        assert all(path.startswith(str(trained)) for path in table.values())
    (root / "exp/inputs.json").write_text(json.dumps(inputs))
    run_training(root, upstream)
    log = (root / "exp/train.log").read_text()
    assert "The training was resumed" in log
    assert "4epoch results" in log and log.count("1epoch results") == 1


def test_features_beyond_the_limit_are_not_stored(
    trained, upstream, tmp_path, monkeypatch, caplog
):
    commands = []
    monkeypatch.setattr(
        downstream, "_run_espnet", lambda command, directory: commands.append(command)
    )
    arguments = (
        *(upstream, trained / "train", trained / "dev", tmp_path / "store"),
        *(tmp_path / "exp", trained / "head.yaml"),
    )
    with pytest.raises(RecipeError, match="more than feature_store_gb"):
        downstream.train_head(*arguments, downstream.HeadOptions(feature_store_gb=1e-6))
    with pytest.raises(RecipeError, match="training wrote no"):
        with caplog.at_level(logging.INFO):
            downstream.train_head(
                *arguments,
                downstream.HeadOptions(feature_store_gb=1e-6),
                source="the/upstream",
            )
    (command,) = commands
    assert "upstream=the/upstream" in command and "lamer_upstream" in command
    speech = [word for word in command if word.endswith(",speech,sound")]
    assert len(speech) == 2
    assert "runs in every epoch" in caplog.text
    assert not (tmp_path / "store").exists()
    # The batches are those of stored features.
    shape = read_table(tmp_path / "exp/data/train/speech_shape")
    assert shape == read_table(trained / "exp/data/train/speech_shape")
    with pytest.raises(RecipeError, match="training wrote no"):
        downstream.train_head(*arguments, downstream.HeadOptions())
    assert "stored_features" in commands[1]


def test_a_learning_rate_replaces_the_configs_and_its_schedules(tmp_path):
    config = tmp_path / "head.yaml"
    head = downstream.HeadOptions(learning_rate=3e-4)
    vocabulary = downstream.build_vocabulary(["A"], "char", tmp_path)
    for schedule, expected in (({}, 1), ({"scheduler_conf": {"max_lr": 1}}, 2)):
        config.write_text(yaml.safe_dump(CONFIG | schedule))
        options = downstream._espnet_options(
            tmp_path, tmp_path, config, 16, vocabulary, head, True
        )
        found = [word for word in options if word.endswith("lr=0.0003")]
        assert found == ["lr=0.0003", "max_lr=0.0003"][:expected]


def test_missing_or_contradicting_targets_are_named(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 2, 0)
    with pytest.raises(RecipeError, match="target: found 'speaker'"):
        downstream.HeadOptions(target="speaker")
    dirs = [data, data]
    with pytest.raises(RecipeError, match="utt_00 is also in another directory"):
        downstream.train_head(upstream, dirs, dirs, tmp_path / "s", tmp_path / "e", "-")
    write_table(data / "text", {"utt_00": "A"})
    with pytest.raises(RecipeError, match="text: utt_01: no text"):
        downstream.train_head(upstream, data, data, tmp_path / "s", tmp_path / "e", "-")
    assert not (tmp_path / "e").exists()


# --- decoding -----------------------------------------------------------------


def test_decoding_equals_speech2text_and_is_written_as_espnet_does(trained):
    result = decoding.decode(
        trained / "exp/final",
        trained / "dev/wav.scp",
        trained / "decoded",
        trained / "decode.yaml",
    )
    assert result == trained / "decoded/1best_recog/text"
    texts = read_table(result)
    tokens = read_table(result.parent / "token")
    ids = read_table(result.parent / "token_int")
    speech2text = decoding.load_speech2text(trained / "exp/final", GREEDY)
    assert len(set(texts.values())) > 1
    for utt, path in read_table(trained / "dev/wav.scp").items():
        wav = soundfile.read(path, dtype="float32")[0]
        text, token, token_int, _ = speech2text(wav)[0]
        assert texts[utt] == text.strip()
        assert tokens[utt].split() == token
        assert ids[utt].split() == [str(i) for i in token_int]


def test_stored_features_and_waveforms_are_decoded_to_the_same_text(trained):
    """Stored features through the trained head, waveforms through the final model."""
    from espnet2_lamer.tasks.asr import LamerASRTask

    model, args = LamerASRTask.build_model_from_file(
        trained / "exp/config.yaml", trained / "exp/valid.loss.ave.pth"
    )
    model.eval()
    # The final model is ESPnet's own and knows no amp_dtype.
    model.encoder.forward = type(model.encoder).forward.__get__(model.encoder)
    features = kaldiio.load_scp(str(trained / "exp/data/dev/feats.scp"))
    samples = samples_of(trained / "dev")
    decoded = decoding.decode_utterances(trained / "exp/final", samples, GREEDY)
    assert len({text for text, _, _ in decoded.values()}) > 1
    for utt, (text, _, _) in decoded.items():
        feats = torch.from_numpy(features[utt].copy())[None]
        with torch.no_grad():
            encoded, _ = model.encode(feats, torch.tensor([feats.shape[1]]))
            log_probs = model.ctc.log_softmax(encoded)[0].numpy()
        ids = greedy_prefix_search(log_probs, model.blank_id, model.eos)
        tokens = [args.token_list[i] for i in ids]
        assert "".join(" " if t == "<space>" else t for t in tokens) == text


def test_a_packed_head_decodes_waveforms_to_the_same_text(trained, tmp_path):
    from espnet2_lamer.export.zoo import pack_model, unpack_model

    final = trained / "exp/final"
    archive = tmp_path / "head.zip"
    pack_model("asr", final / "config.yaml", final / "model.pth", archive)
    files = unpack_model(archive, tmp_path / "cache")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (unpacked / "config.yaml").symlink_to(files["asr_train_config"])
    (unpacked / "model.pth").symlink_to(files["asr_model_file"])
    samples = samples_of(trained / "dev")
    before, after = (
        decoding.decode_utterances(directory, samples, GREEDY)
        for directory in (final, unpacked)
    )
    assert after == before


def test_a_wider_beam_runs_speech2texts_own_search(trained):
    options = {**GREEDY, "beam_size": 2}
    samples = samples_of(trained / "dev")
    found = decoding.decode_utterances(trained / "exp/final", samples, options)
    speech2text = decoding.load_speech2text(trained / "exp/final", options)
    for utt, path, _ in samples:
        wav = soundfile.read(path, dtype="float32")[0]
        assert found[utt][0] == speech2text(wav)[0][0]


def test_decoded_set_is_kept_until_model_audio_or_config_changes(
    trained, tmp_path, monkeypatch
):
    calls = []

    def fake(final_dir, samples, options, device, closed_sets):
        calls.append(options)
        return [{utt: ("T", "t", "1") for utt, _, _ in samples} for _ in closed_sets]

    monkeypatch.setattr(decoding, "decode_decisions", fake)
    config = tmp_path / "decode.yaml"
    config.write_text(yaml.safe_dump(GREEDY))
    arguments = (trained / "exp/final", trained / "dev/wav.scp", tmp_path / "d", config)
    decoding.decode(*arguments)
    decoding.decode(*arguments)
    assert len(calls) == 1
    config.write_text(yaml.safe_dump({**GREEDY, "beam_size": 5}))
    decoding.decode(*arguments)
    assert len(calls) == 2
    with pytest.raises(RecipeError, match="made by stages 10 and 11"):
        decoding.decode(tmp_path, *arguments[1:])


def test_prefix_search_equals_espnets_on_random_posteriors():
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.scorers.ctc import CTCPrefixScorer
    from espnet.nets.scorers.length_bonus import LengthBonus

    class Posteriors(torch.nn.Module):
        def log_softmax(self, x):
            return x.log_softmax(-1)

    vocabulary = 7
    scorers = {
        "ctc": CTCPrefixScorer(ctc=Posteriors(), eos=vocabulary - 1),
        "length_bonus": LengthBonus(vocabulary),
    }
    search = BatchBeamSearch(
        scorers=scorers,
        weights={"ctc": 1.0, "length_bonus": 0.0},
        beam_size=1,
        vocab_size=vocabulary,
        sos=vocabulary - 1,
        eos=vocabulary - 1,
    )
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for trial in range(60):
        frames = 1 + trial % 20
        sharpness = 0.5 + trial % 4
        x = sharpness * torch.randn(frames, vocabulary, generator=generator)
        # eos is never a CTC output; blanks and repeats must both occur.
        x[:, -1] = -20
        x[:, 0] += 1
        # ESPnet appends a second <sos/eos> when the search ends at the last frame.
        ended = (0, vocabulary - 1)
        expected = [i for i in search(x)[0].yseq[1:-1].tolist() if i not in ended]
        found = greedy_prefix_search(x.log_softmax(-1).numpy())
        assert found == expected, trial
        lengths.add(len(found))
    assert len(lengths) > 5


def test_a_run_is_decoded_beside_its_reference(trained, tmp_path):
    from espnet2_lamer.evaluation.runs import Run

    write_set(tmp_path / "raw/other", "other", 1, 7)
    (tmp_path / "raw/dev").symlink_to(trained / "dev")
    run = Run(
        *("asr", "own", "all", "", ("eng",), "char", "tiny", "x", "all", "c"),
        train_sets=("train",),
        dev_sets=("dev",),
        tests={"one": ("dev",), "both": ("dev", "other")},
    )
    experiment = tmp_path / "exp" / run.name
    experiment.mkdir(parents=True)
    (experiment / "final").symlink_to(trained / "exp/final")
    arguments = (run, tmp_path / "exp", tmp_path / "raw", trained / "decode.yaml")
    found = decoding.decode_run(*arguments)
    assert {label: list(files) for label, files in found.items()} == (
        {"one": ["free"], "both": ["free"]}
    )
    both = experiment / "decode_both"
    assert found["both"]["free"] == both / "free/1best_recog/text"
    reference = read_table(both / "ref/text")
    assert reference.keys() == read_table(found["both"]["free"]).keys()
    assert reference["other_00"] == read_table(tmp_path / "raw/other/text")["other_00"]
    sets = read_table(both / "ref/utt2set")
    assert (sets["other_00"], sets["dev_00"]) == ("other", "dev")
    assert set(read_table(both / "ref/utt2lang").values()) == {"eng"}
    # Before and after: what stored features give, read from waveforms.
    assert read_table(found["one"]["free"]).items() <= (
        read_table(found["both"]["free"]).items()
    )
    twice = {**vars(run), "tests": {"twice": ("dev", "dev")}}
    with pytest.raises(RecipeError, match="is also in another test set"):
        decoding.decode_run(Run(**twice), *arguments[1:])
