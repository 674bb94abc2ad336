"""Model cards of published models: README.md with Hugging Face front matter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from espnet2_lamer.convert.families import FAMILIES
from espnet2_lamer.layers import LamerConfig

_TASKS = {
    "asr": ("automatic-speech-recognition", "speech recognition"),
    "ssl": ("feature-extraction", "self-supervised speech representation"),
}
ASR_USE = """\
from espnet2.bin.asr_inference import Speech2Text
import espnet2_lamer, soundfile
from espnet2_lamer.convert.packed import unpack_model

espnet2_lamer.register()
model = Speech2Text(**unpack_model("{name}.zip", "models"), beam_size=1, {options})
{more}print(model(soundfile.read("speech.wav")[0])[0][0])
"""
_SSL_USE = """\
import espnet2_lamer, soundfile, torch

model = espnet2_lamer.load_model("{name}.zip")
speech = torch.tensor(soundfile.read("speech.wav", dtype="float32")[0])[None]
states, lengths = model.extract_features(speech, torch.tensor([speech.shape[1]]))
"""
_TRANSFORMERS_USE = """\
import soundfile, torch
from transformers import {extractor}, {model}

directory = "{name}"  # a path, or an id of the Hub
extractor = {extractor}.from_pretrained(directory{trust})
model = {model}.from_pretrained(directory{trust}).eval()
speech, rate = soundfile.read("speech.wav")  # 16 kHz, mono
inputs = extractor(speech, sampling_rate=rate, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs, output_hidden_states=True).hidden_states
"""
_ONNX_USE = """\
import numpy, onnxruntime, soundfile

session = onnxruntime.InferenceSession("{name}/model.onnx")
speech, rate = soundfile.read("speech.wav", dtype="float32")  # 16 kHz, mono
given = {{{given}}}
(state,) = session.run(["state_{last}"], given)
"""
_RECIPE = "the Lamer-SSL recipe ([arXiv 2602.12746](https://arxiv.org/abs/2602.12746))"


@dataclass
class Origin:
    """Where a model comes from.

    Attributes:
        name: Of the model; ``None`` takes the directory's.
        languages: ISO 639-3 codes.
        licence: Hugging Face's id of the licence under which the weights may be used.
            A teacher's or a corpus's terms bind the model trained with them
            (mHuBERT-147: ``cc-by-nc-sa-4.0``).
        notes: What a user must know: origin and licence of teacher, base and data.
    """

    name: str | None = None
    languages: Sequence[str] = ()
    licence: str = "apache-2.0"
    notes: Sequence[str] = ()


def model_card(
    kind: str,
    origin: Origin,
    *,
    results: str | None = None,
    datasets: Sequence[str] = (),
    about: str | None = None,
    use: str | None = None,
    tag: str = "lamer-ssl",
) -> str:
    """Return the card of an ESPnet model.

    Args:
        kind: ``"asr"`` or ``"ssl"``.
        origin: With a name, also of the zip.
        results: Markdown of the results; its headings are moved one level down.
        datasets: Ids of the data on Hugging Face.
        about: What the model is; default: a HuBERT of this recipe.
        use: Python that uses it; default: that of ``kind``.
        tag: Of its family.
    """
    task, meaning = _TASKS[kind]
    front = {
        "library_name": "espnet",
        "pipeline_tag": task,
        "tags": ["espnet", "audio", task, tag],
    }
    about = about or (
        "a HuBERT extended to new languages with layer-aware mixtures of LoRA experts "
        f"by {_RECIPE}"
    )
    default = {"asr": ASR_USE, "ssl": _SSL_USE}[kind]
    use = use or default.format(name=origin.name, options="ctc_weight=1.0", more="")
    card = _card(
        front,
        origin,
        [f"An ESPnet model for {meaning}: {about}."],
        [
            "With the package `espnet2_lamer` installed; 16 kHz mono speech.",
            f"```python\n{use}```",
            "Set the environment variable `TORCH_FORCE_WEIGHTS_ONLY_LOAD=1` so that "
            "nothing in a downloaded file is executed.",
        ],
        datasets,
    )
    if results:
        card += f"\n## Results\n\n{_lower_headings(results.strip())}\n"
    return card


def hugging_face_card(
    directory: str | Path,
    origin: Origin | None,
    lamer: LamerConfig | None,
    family: str = "hubert",
    more: Sequence[str] = (),
) -> str:
    """Return the card of a directory for transformers.

    ``lamer`` has the options of its experts, ``None`` for a plain model of ``family``;
    paragraphs of ``more`` follow what it is. ``origin`` may name it otherwise.
    """
    origin = origin or Origin()
    origin = replace(origin, name=origin.name or Path(directory).absolute().name)
    front = {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": [family, "speech", "feature-extraction", "lamer-ssl"],
    }
    if lamer is None:
        model, extractor = FAMILIES[family].model, "Wav2Vec2FeatureExtractor"
        trust, what = "", f"A plain `{model}`."
    else:
        model, extractor = "AutoModel", "AutoFeatureExtractor"
        trust = ", trust_remote_code=True"
        routing = "all of them" if lamer.top_k is None else f"top {lamer.top_k}"
        routing = "merged over an utterance" if lamer.merges else routing
        what = (
            f"{FAMILIES[family].title} with LoRA experts in its feed-forward networks: "
            f"allocation {lamer.allocation}, rank {lamer.rank}, {routing}. The code in "
            "this directory needs transformers and torch only. "
            "`hidden_states[k]` is the output of layer k, 0 the transformer's input."
        )
    use = _TRANSFORMERS_USE.format(
        extractor=extractor, model=model, trust=trust, name=origin.name
    )
    return _card(
        front, origin, [f"{what} Made by {_RECIPE}.", *more], [f"```python\n{use}```"]
    )


def onnx_card(
    directory: str | Path,
    origin: Origin | None,
    inputs: Sequence[str],
    last: int,
    about: str,
    table: str,
) -> str:
    """Card of an ONNX directory, its ``table`` of sizes, errors and speeds inside.

    ``inputs`` are the graph's, ``last`` is its last state; ``about`` says what was
    merged.
    """
    origin = origin or Origin()
    origin = replace(origin, name=origin.name or Path(directory).absolute().name)
    front = {
        "library_name": "onnx",
        "pipeline_tag": "feature-extraction",
        "tags": ["hubert", "speech", "feature-extraction", "lamer-ssl", "onnx"],
    }
    given = ['"waveforms": speech[None]']
    if "lengths" in inputs:
        given.append('"lengths": numpy.array([len(speech)])')
        batches = (
            "A batch is padded with zeros; `lengths` are its samples, and `frames` the "
            "states' valid frames."
        )
    else:
        batches = (
            "Waveforms of a batch are equally long: this model's group norm would see "
            "padding, so there is no input for lengths."
        )
    what = (
        f"`state_0` (the transformer's input) to `state_{last}` of a HuBERT, `[B, T, "
        "D]`, 50 frames a second, of waveforms `[B, n]`."
    )
    use = _ONNX_USE.format(name=origin.name, given=", ".join(given), last=last)
    paragraphs = [about, what, batches, table, f"Made by {_RECIPE}."]
    return _card(front, origin, [p for p in paragraphs if p], [f"```python\n{use}```"])


def whisper_card(kind: str, directory: str | Path, origin: Origin, prompt: str) -> str:
    """Card of a merged Whisper, a directory of ``hf`` or ``ctranslate2``."""
    origin = replace(origin, name=origin.name or Path(directory).absolute().name)
    library = {"hf": "transformers"}.get(kind, kind)
    task = _TASKS["asr"][0]
    front = {
        "library_name": library,
        "pipeline_tag": task,
        "tags": ["whisper", "audio"],
    }
    use = f"Load it with {library} as any Whisper; its prompt is `{prompt}`."
    return _card(
        front, origin, ["A Whisper with a trained LoRA merged into it."], [use]
    )


def _card(
    front: dict[str, Any],
    origin: Origin,
    about: Sequence[str],
    use: Sequence[str],
    datasets: Sequence[str] = (),
) -> str:
    front |= {"language": list(origin.languages), "license": origin.licence}
    if datasets:
        front["datasets"] = list(datasets)
    notes = [f"Weights: {origin.licence}", *origin.notes]
    paragraphs = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {origin.name}",
        *about,
        "## Use",
        *use,
        "## Licence and origin",
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _lower_headings(markdown: str) -> str:
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines)
