"""The challenge's function as its server wants it: ``app/domain/model.py`` there.

In the template of the organisers, ``app/resources/`` gets the folder that this file
comes from.
"""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

RATE = 16000
SCHEMAS = "app.domain.schemas.model"


class ModelController:
    """What the server makes of a submission; languages are codes in brackets."""

    def __init__(self):
        resources = Path(__file__).resolve().parent.parent / "resources"
        if str(resources) not in sys.path:
            sys.path.insert(0, str(resources))
        ours = importlib.import_module("model")
        ours.load()
        self.api = ours.API
        # The template's own.
        self.answer = importlib.import_module(SCHEMAS).ModelSingleOutput

    def single_inference(self, input_data):
        """Return language and text of one utterance."""
        speech = np.asarray(input_data.audio, dtype=np.float32)
        if input_data.sample_rate != RATE:
            import soxr

            speech = soxr.resample(speech, input_data.sample_rate, RATE)
        language, text = self.api(speech, input_data.language or None)
        return self.answer(language=f"[{language}]", text=text)

    def batch_inference(self, input_data):
        """Return them of several utterances, one after the other."""
        return [
            self.single_inference(SimpleNamespace(**sample))
            if isinstance(sample, dict)
            else self.single_inference(sample)
            for sample in getattr(input_data, "dataset_samples", input_data)
        ]
