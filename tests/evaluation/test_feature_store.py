"""Stored features are the frontend's, of one upstream, layer, set and dtype."""

import copy
import json
import logging
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation import feature_store
from espnet2_lamer.fileio.datadir import read_table
from tests.evaluation.tiny_head import (
    TINY,
    samples_of,
    write_set,
)


def stored(*arguments, **options):
    return feature_store.store_features(feature_store.plan_store(*arguments, **options))


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 2e-3)])
def test_store_holds_the_frontends_tensors(tmp_path, upstream, dtype, error):
    from espnet2_lamer.asr.frontend.states import upstream_states

    data = write_set(tmp_path / "set", "utt", 3, 0)
    store = stored(upstream, "all", data, tmp_path / "s", dtype)
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
        return stored(model, layer, directory, tmp_path / "s", dtype)

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

    def die_at_third(plan, shard, device):
        calls.append([utt for utt, _, _ in shard])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(plan, shard, device)

    monkeypatch.setattr(feature_store, "_compute", die_at_third)
    arguments = (upstream, 1, data, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        stored(*arguments)
    (unfinished,) = (tmp_path / "s").glob("*.unfinished")
    assert not (unfinished / "info.json").exists()
    store = stored(*arguments)
    assert list((tmp_path / "s").glob("[!.]*")) == [store.directory]
    assert len(calls) == 5 and calls[2] == calls[3]  # two finished shards were kept
    assert sorted(kaldiio.load_scp(str(store.scp))) == sorted(read_table(data / "text"))


def test_size_is_told_before_features_are_computed(tmp_path, upstream, caplog):
    data = write_set(tmp_path / "set", "utt", 1, 0)
    with caplog.at_level(logging.INFO):
        stored(upstream, "all", data, tmp_path / "s")
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
        stored(*arguments)
    Path(path).write_bytes(b"")
    with pytest.raises(RecipeError, match="utt_00: cannot read"):
        stored(*arguments)
    with pytest.raises(RecipeError, match="expected float32 or float16"):
        stored(*arguments, dtype="int8")
    assert not (tmp_path / "s").exists()


def test_values_beyond_float16_are_refused(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 1, 0)
    loud = copy.deepcopy(upstream)
    loud.extract_features = lambda wavs, lengths, up_to: (
        [torch.full((1, 10, 16), 1e5)] * 3,
        torch.tensor([10]),
    )
    with pytest.raises(
        RecipeError, match="utt_00: a feature does not fit into float16"
    ):
        stored(loud, 1, data, tmp_path / "s", "float16")


def test_a_store_of_another_width_is_refused_and_left_as_it_is(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 2, 0)
    arguments = (upstream, "all", data, tmp_path / "s")
    store = stored(*arguments)
    path = store.directory / "info.json"
    info = json.loads(path.read_text()) | {"dim": 24}
    path.write_text(json.dumps(info))
    before = {p: p.read_bytes() for p in store.directory.iterdir()}
    with pytest.raises(RecipeError, match="info.json: dim: found 24, expected 16"):
        stored(*arguments)
    assert {p: p.read_bytes() for p in store.directory.iterdir()} == before


def test_the_planned_size_is_that_of_the_arrays(tmp_path, upstream):
    data = write_set(tmp_path / "set", "utt", 3, 0)
    for dtype in ("float32", "float16"):
        arguments = (upstream, "all", data, tmp_path / "s", dtype)
        plan = feature_store.plan_store(*arguments)
        assert not plan.stored
        store = stored(*arguments)
        arrays = kaldiio.load_scp(str(store.scp)).values()
        assert sum(a.nbytes for a in arrays) == pytest.approx(1e9 * plan.gigabytes)
        assert feature_store.plan_store(*arguments).stored
