"""The model card of a Hugging Face directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from espnet2_lamer.layers import LamerConfig

_USE = """\
import soundfile, torch
from transformers import {classes}

directory = "{name}"  # a path, or an id of the Hub
extractor = {extractor}.from_pretrained(directory{trust})
model = {model}.from_pretrained(directory{trust}).eval()
speech, rate = soundfile.read("speech.wav")  # 16 kHz, mono
inputs = extractor(speech, sampling_rate=rate, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs, output_hidden_states=True).hidden_states
"""


@dataclass
class Origin:
    """Where a model comes from.

    Args:
        name: Of the model; ``None`` takes the directory's.
        languages: ISO 639-3 codes.
        licence: Hugging Face's id of the licence of the weights.
        notes: Lines about teacher, base and data.
    """

    name: str | None = None
    languages: Sequence[str] = ()
    licence: str = "apache-2.0"
    notes: Sequence[str] = field(default_factory=list)


def hugging_face_card(
    directory: str | Path,
    origin: Origin | None,
    lamer: LamerConfig | None,
    more: Sequence[str] = (),
) -> str:
    """Return the text of ``README.md``.

    Args:
        directory: Gives the name where ``origin`` does not.
        origin: Where the model comes from.
        lamer: Options of its experts; ``None`` for a plain ``HubertModel``.
        more: Paragraphs that follow.
    """
    origin = origin or Origin()
    name = origin.name or Path(directory).absolute().name
    front = {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["hubert", "speech", "feature-extraction", "lamer-ssl"],
        "language": list(origin.languages),
        "license": origin.licence,
    }
    if lamer is None:
        model, extractor, trust = "HubertModel", "Wav2Vec2FeatureExtractor", ""
        what = "A plain `HubertModel`."
    else:
        model, extractor = "AutoModel", "AutoFeatureExtractor"
        trust = ", trust_remote_code=True"
        routing = "all of them" if lamer.top_k is None else f"top {lamer.top_k}"
        what = (
            f"HuBERT with LoRA experts in its feed-forward networks: allocation "
            f"{lamer.allocation}, rank {lamer.rank}, {routing}. The code in this "
            "directory needs transformers and torch only. "
            "`hidden_states[k]` is the output of layer k, 0 the transformer's input."
        )
    use = _USE.format(
        classes=f"{extractor}, {model}",
        extractor=extractor,
        model=model,
        trust=trust,
        name=name,
    )
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---\n",
        f"# {name}\n",
        f"{what} Made by the Lamer-SSL recipe "
        "([arXiv 2602.12746](https://arxiv.org/abs/2602.12746)).\n",
        *(f"{paragraph}\n" for paragraph in more),
        "## Use\n",
        f"```python\n{use}```\n",
        "## Licence and origin\n",
        f"- Weights: {origin.licence}\n"
        + "".join(f"- {note}\n" for note in origin.notes),
    ]
    return "\n".join(parts)
