"""The model card of a published model: README.md with Hugging Face front matter."""

from collections.abc import Sequence

import yaml

_TASKS = {
    "asr": ("automatic-speech-recognition", "speech recognition"),
    "ssl": ("feature-extraction", "self-supervised speech representation"),
}

_USE = {
    "asr": """\
from espnet2.bin.asr_inference import Speech2Text
import espnet2_lamer, soundfile
from espnet2_lamer.convert.packed import unpack_model

espnet2_lamer.register()
model = Speech2Text(**unpack_model("{name}.zip", "models"), beam_size=1, ctc_weight=1.0)
print(model(soundfile.read("speech.wav")[0])[0][0])
""",
    "ssl": """\
import espnet2_lamer, soundfile, torch

model = espnet2_lamer.load_model("{name}.zip")
speech = torch.tensor(soundfile.read("speech.wav", dtype="float32")[0])[None]
states, lengths = model.extract_features(speech, torch.tensor([speech.shape[1]]))
""",
}

_ABOUT = (
    "a HuBERT extended to new languages with layer-aware mixtures of LoRA experts by "
    "the Lamer-SSL recipe ([arXiv 2602.12746](https://arxiv.org/abs/2602.12746))"
)


def model_card(
    kind: str,
    name: str,
    *,
    languages: Sequence[str] = (),
    licence: str = "apache-2.0",
    notes: Sequence[str] = (),
    results: str | None = None,
    datasets: Sequence[str] = (),
    about: str | None = None,
    use: str | None = None,
    tag: str = "lamer-ssl",
) -> str:
    """Return the text of a model card.

    Args:
        kind: ``"asr"`` or ``"ssl"``.
        name: Name of the model, also of its zip.
        languages: ISO 639-3 codes.
        licence: Hugging Face's id of the licence under which the weights may be used.
            A teacher's or a corpus's terms bind the model trained with them
            (mHuBERT-147: ``cc-by-nc-sa-4.0``).
        notes: What a user must know: origin and licence of teacher, base and data.
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
        "language": list(languages),
        "license": licence,
    }
    if datasets:
        front["datasets"] = list(datasets)
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---\n",
        f"# {name}\n",
        f"An ESPnet model for {meaning}: {about or _ABOUT}.\n",
        "## Use\n",
        "With the package `espnet2_lamer` installed; 16 kHz mono speech.\n",
        "```python\n" + (use or _USE[kind].format(name=name)) + "```\n",
        "Set the environment variable `TORCH_FORCE_WEIGHTS_ONLY_LOAD=1` so that "
        "nothing in a downloaded file is executed.\n",
        "## Licence and origin\n",
        f"- Weights: {licence}\n" + "".join(f"- {note}\n" for note in notes),
    ]
    if results:
        parts.append("## Results\n")
        parts.append(_lower_headings(results.strip()) + "\n")
    return "\n".join(parts)


def _lower_headings(markdown: str) -> str:
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines)
