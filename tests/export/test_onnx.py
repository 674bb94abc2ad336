"""ONNX files give torch's states, for every member of the family that has a form."""

import json

import numpy as np
import pytest
import soundfile
import torch

import espnet2_lamer
from espnet2_lamer.bin.export import main as export
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export import onnx as module
from espnet2_lamer.export.huggingface import write_huggingface
from espnet2_lamer.export.onnx import StatesGraph, write_onnx
from tests.export.family import BIAS, GROUP_NORM, build, padded, speech
from tests.tiny_hubert import MERGED

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs espnet2-lamer[onnx]")

SOFT = {"allocation": "3", "rank": 2, "top_k": None}
LORA = {"allocation": 1, "rank": 4, "alpha": 8.0}
PROJECTION = BIAS | {"router": "projection"}
FFN = {"allocation": "2", "rank": 2, "targets": ["ffn"]}
FAMILY = {
    "top-2": BIAS,
    "soft": SOFT,
    "projection": PROJECTION,
    "ffn": FFN,
    "merged": MERGED,
    "lora": LORA,
    "plain": None,
}


def run(path, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    given = {name: np.asarray(value) for name, value in inputs.items()}
    return dict(zip(names, session.run(None, given), strict=True))


def same_states(found, expected, frames):
    for k, state in enumerate(expected):
        for row, count in enumerate(frames.tolist()):
            valid = torch.from_numpy(found[f"state_{k}"])[row, :count]
            error = (valid - state[row, :count]).norm() / state[row, :count].norm()
            assert error < 1e-4, (k, row)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("changes", [{}, GROUP_NORM], ids=["pre-norm", "post-norm"])
def test_the_graph_before_export_computes_every_state(name, changes):
    upstream = build(FAMILY[name], final_norm=name != "soft", **changes)
    wavs, lengths = padded(speech())
    if changes:
        wavs, lengths = wavs[:1], None
    expected, frames = upstream.extract_features(wavs, lengths)
    with torch.no_grad():
        *found, count = (*StatesGraph(upstream, 2)(wavs, lengths), None)[:4]
    if not changes:
        assert torch.equal(count, frames)
    frames = torch.tensor([9]) if frames is None else frames
    arrays = {f"state_{k}": state.numpy() for k, state in enumerate(found)}
    same_states(arrays, expected, frames)


@pytest.mark.slow
def test_files_of_a_routed_model_are_exact_and_say_what_int8_costs(tmp_path):
    upstream = build(BIAS)
    upstream.languages = ("cmn", "yue")
    report = write_onnx(upstream, tmp_path / "onnx")
    wavs, lengths = padded(speech())
    expected, frames = upstream.extract_features(wavs, lengths)
    found = run(tmp_path / "onnx" / "model.onnx", waveforms=wavs, lengths=lengths)
    assert found["frames"].tolist() == frames.tolist()
    same_states(found, expected, frames)
    # Of other sizes than at export.
    for count in (400, 401, 16000):
        wave = torch.randn(1, count, generator=torch.Generator().manual_seed(count))
        expected, _ = upstream.extract_features(wave)
        inputs = {"waveforms": wave, "lengths": [count]}
        found = run(tmp_path / "onnx" / "model.onnx", **inputs)
        same_states(found, expected, torch.tensor([expected[0].shape[1]]))
    assert report == json.loads((tmp_path / "onnx" / "report.json").read_text())
    forms = report["forms"]
    assert forms["ONNX float32"]["largest"] < 1e-4 < forms["ONNX int8"]["error"] < 0.5
    assert report["routers"] and report["languages"] == ["cmn", "yue"]
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert module.report_table(report) in card and "lengths" in card
    import onnx

    graph = onnx.load(tmp_path / "onnx" / "model_int8.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert "MatMulInteger" in kinds or "DynamicQuantizeMatMul" in kinds
    # Layer 1 has two experts and uses both, layer 2 four: a router each, as floats.
    assert len(module._router_products(graph_of(graph))) == 2


def graph_of(graph):
    import onnx

    return onnx.helper.make_model(graph)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, GROUP_NORM], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("name", FAMILY)
def test_every_member_of_the_family_has_an_exact_file(tmp_path, name, changes):
    upstream = build(FAMILY[name], final_norm=name != "soft", **changes)
    directory = tmp_path / "onnx"
    report = write_onnx(upstream, directory, int8=False, last=1)
    assert [*report["forms"]] == ["torch float32", "ONNX float32"]
    assert report["states"] == 2
    wavs, lengths = padded(speech())
    if changes:
        assert report["inputs"] == ["waveforms"]
        expected, _ = upstream.extract_features(wavs, up_to=1)
        found = run(directory / "model.onnx", waveforms=wavs)
        frames = torch.tensor([expected[0].shape[1]] * 3)
    else:
        expected, frames = upstream.extract_features(wavs, lengths, up_to=1)
        found = run(directory / "model.onnx", waveforms=wavs, lengths=lengths)
    assert "state_2" not in found
    same_states(found, expected, frames)


@pytest.fixture
def corpus(tmp_path):
    """Speech of a language."""
    lines = []
    for number, wave in enumerate(speech()[:2]):
        path = tmp_path / f"u{number}.wav"
        soundfile.write(path, wave.numpy(), 16000)
        lines.append(f"u{number} {path}\n")
    (tmp_path / "wav.scp").write_text("".join(lines))
    return tmp_path / "wav.scp"


@pytest.mark.slow
def test_the_command_merges_what_can_be_merged_and_says_so(tmp_path, corpus):
    def write(lamer, name, *options):
        write_huggingface(build(lamer), tmp_path / name)
        output = tmp_path / f"{name}_onnx"
        given = [f"--experiment={tmp_path / name}", f"--output={output}", *options]
        export(["--kind=onnx", "--int8=false", *given])
        report = json.loads((output / "report.json").read_text())
        return report, (output / "README.md").read_text()

    report, card = write(LORA, "lora")
    assert not report["routers"] and "merged into its weights, exactly" in card
    given = (f"--wav_scp={corpus}", "--language=xho")
    report, card = write(BIAS, "mixed", *given)
    assert not report["routers"] and report["languages"] == ["xho"]
    assert report["compared_on"] == "speech" and "averaged over xho speech" in card


def test_what_has_no_such_form_is_refused_by_name(tmp_path, corpus):
    def write(lamer, *options):
        write_huggingface(build(lamer), tmp_path / "hf")
        given = [f"--experiment={tmp_path / 'hf'}", f"--output={tmp_path / 'onnx'}"]
        export(["--kind=onnx", *given, *options])

    with pytest.raises(RecipeError, match="--language of --kind onnx needs --wav_scp"):
        write(BIAS, "--language=xho")
    with pytest.raises(RecipeError, match="lamer.targets: found 'ffn'"):
        write(FFN, "--language=xho", f"--wav_scp={corpus}")
    with pytest.raises(RecipeError, match="--layer: found 3, expected 0 .* to 2"):
        write(BIAS, "--layer=3")
    assert not (tmp_path / "onnx").exists()


def test_a_graph_that_computes_otherwise_is_not_written(tmp_path, monkeypatch):
    def errors(reference, run, batches):
        return {"error": 0.1, "largest": 0.5, "share": 0.2}

    monkeypatch.setattr(module, "_export", lambda *_: None)
    monkeypatch.setattr(module, "_session", lambda *_: None)
    monkeypatch.setattr(module, "_errors", errors)
    with pytest.raises(RecipeError, match="20.00 % of the frames differ from torch's"):
        write_onnx(build(BIAS), tmp_path / "onnx", int8=False)
    assert not (tmp_path / "onnx").exists()


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_lamer.errors.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'espnet2-lamer\[onnx\]'"):
        write_onnx(build(BIAS), tmp_path / "onnx")


def test_a_hugging_face_directory_of_ours_is_a_source_of_exports(tmp_path):
    write_huggingface(build(BIAS), tmp_path / "hf")
    export(
        ["--kind=hf", f"--experiment={tmp_path / 'hf'}", f"--output={tmp_path / 'b'}"]
    )
    one, two = (espnet2_lamer.load_model(tmp_path / name) for name in ("hf", "b"))
    states = zip(one.state_dict().items(), two.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in states)
