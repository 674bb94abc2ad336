"""Decoding gives what Speech2Text gives, from stored features and from waveforms."""

import kaldiio
import pytest
import soundfile
import torch
import yaml

from espnet2_lamer.compat import espnet_nets
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import head_decoding
from espnet2_lamer.evaluation.head_decoding import greedy_prefix_search
from espnet2_lamer.fileio.datadir import read_table
from tests.evaluation.tiny_head import (
    GREEDY,
    samples_of,
    write_set,
)


def test_decoding_equals_speech2text_and_is_written_as_espnet_does(trained):
    (result,) = head_decoding.decode(
        trained / "exp/final",
        trained / "dev/wav.scp",
        {trained / "decoded": False},
        trained / "decode.yaml",
    )
    assert result == trained / "decoded/1best_recog/text"
    texts = read_table(result)
    tokens = read_table(result.parent / "token")
    ids = read_table(result.parent / "token_int")
    speech2text = head_decoding.load_speech2text(trained / "exp/final", GREEDY)
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
    features = kaldiio.load_scp(str(trained / "exp/data/dev/feats.scp"))
    samples = samples_of(trained / "dev")
    decoded = head_decoding.decode_utterances(trained / "exp/final", samples, GREEDY)
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
    from espnet2_lamer.convert.packed import unpack_model
    from espnet2_lamer.export.zoo import pack_model

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
        head_decoding.decode_utterances(directory, samples, GREEDY)
        for directory in (final, unpacked)
    )
    assert after == before


def test_a_wider_beam_runs_speech2texts_own_search(trained):
    options = {**GREEDY, "beam_size": 2}
    samples = samples_of(trained / "dev")
    found = head_decoding.decode_utterances(trained / "exp/final", samples, options)
    speech2text = head_decoding.load_speech2text(trained / "exp/final", options)
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

    monkeypatch.setattr(head_decoding, "decode_decisions", fake)
    config = tmp_path / "decode.yaml"
    config.write_text(yaml.safe_dump(GREEDY))
    outputs = {tmp_path / "d": False}
    arguments = (trained / "exp/final", trained / "dev/wav.scp", outputs, config)
    head_decoding.decode(*arguments)
    head_decoding.decode(*arguments)
    assert len(calls) == 1
    config.write_text(yaml.safe_dump({**GREEDY, "beam_size": 5}))
    head_decoding.decode(*arguments)
    assert len(calls) == 2
    with pytest.raises(RecipeError, match="training a head makes it"):
        head_decoding.decode(tmp_path, *arguments[1:])


def test_prefix_search_equals_espnets_on_random_posteriors():
    BatchBeamSearch = espnet_nets("batch_beam_search").BatchBeamSearch  # noqa: N806
    CTCPrefixScorer = espnet_nets("scorers.ctc").CTCPrefixScorer  # noqa: N806
    LengthBonus = espnet_nets("scorers.length_bonus").LengthBonus  # noqa: N806

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
        track="asr",
        benchmark="own",
        budget="all",
        corpus="",
        langs=("eng",),
        unit="char",
        system="tiny",
        upstream="x",
        layer="all",
        config="c",
        train_sets=("train",),
        dev_sets=("dev",),
        tests={"one": ("dev",), "both": ("dev", "other")},
    )
    experiment = tmp_path / "exp" / run.name
    experiment.mkdir(parents=True)
    (experiment / "final").symlink_to(trained / "exp/final")
    arguments = (run, tmp_path / "exp", tmp_path / "raw", trained / "decode.yaml")
    found = head_decoding.decode_run(*arguments)
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
    with pytest.raises(RecipeError, match="is also in another of these sets"):
        head_decoding.decode_run(Run(**twice), *arguments[1:])
