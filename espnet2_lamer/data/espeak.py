"""Speech synthesis with espeak-ng through ctypes: samples and timed phones."""

import ctypes
import math
from functools import cache
from itertools import takewhile

import numpy as np

from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.errors import RecipeError, require

#: What needs the extra ``mini``.
CORPUS = "the embedded corpus"

#: espeak-ng's voice for each language of the embedded corpus (ISO 639-3).
VOICES = {"eng": "en-us", "cmn": "cmn", "yue": "yue", "spa": "es"}

# Constants of espeak-ng's public header, speak_lib.h (version 1.52).
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_END_PAUSE = 0x1000
_RATE, _PITCH, _RANGE = 1, 3, 4
_EVENT_LIST_TERMINATED = 0
_EVENT_PHONEME = 7


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        # A union of pointers and, for phonemes, 8 characters.
        ("name", ctypes.c_char * 8),
    ]


_SAMPLES, _EVENTS = ctypes.POINTER(ctypes.c_short), ctypes.POINTER(_Event)
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, _SAMPLES, ctypes.c_int, _EVENTS)


class Espeak:
    """One espeak-ng engine in this process.

    The library is neither thread-safe nor free of memory: oscillator phases and noise
    carry over from one synthesis to the next. :meth:`reset` unloads and loads it (0.2
    ms), after which the same calls give the same samples. Use one engine a process.
    """

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._events: list[tuple[float, str]] = []
        # The library keeps the pointer, so the callback object has to live as long.
        self._callback = _CALLBACK(self._receive)
        self._library: ctypes.CDLL | None = None
        self.reset()

    def reset(self) -> None:
        """Bring the engine into the state of a fresh process."""
        require("espeakng_loader", CORPUS)
        import espeakng_loader

        if self._library is not None:
            import _ctypes

            self._library.espeak_Terminate()
            # Static state goes only with the library itself.
            _ctypes.dlclose(self._library._handle)
            self._library = None
        # Random numbers inside the library come from the C library's generator.
        ctypes.CDLL(None).srand(1)
        path = espeakng_loader.get_library_path()
        library = ctypes.CDLL(path)
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._native_rate = library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS,
            0,
            str(espeakng_loader.get_data_path()).encode(),
            _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT,
        )
        if self._native_rate <= 0:
            raise RecipeError(
                f"{path}: espeak-ng did not start (code {self._native_rate}); "
                "reinstall the package espeakng-loader"
            )
        library.espeak_SetSynthCallback(self._callback)
        self._library = library

    def _receive(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._blocks.append(ctypes.string_at(samples, 2 * count))
        for event in takewhile(lambda e: e.type != _EVENT_LIST_TERMINATED, events):
            if event.type == _EVENT_PHONEME:
                name = event.name.decode("utf-8", "replace")
                self._events.append((event.audio_position / 1000.0, name))
        return 0

    def _set_voice(self, voice: str) -> None:
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")

    def phonemes(self, text: str, voice: str) -> str:
        """Return espeak's phoneme string of ``text``, clauses joined by spaces."""
        self._set_voice(voice)
        pointer = ctypes.c_char_p(text.encode())
        clauses = []
        while pointer.value is not None:
            clause = self._library.espeak_TextToPhonemes(
                ctypes.byref(pointer), _CHARS_UTF8, 0
            )
            clauses.append((clause or b"").decode("utf-8", "replace"))
        return " ".join(clauses)

    def synthesise(
        self,
        text: str,
        voice: str,
        variant: str = "",
        pitch: int = 50,
        pitch_range: int = 50,
        rate: int = 160,
    ) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
        """Speak ``text``, in the script the voice reads (hanzi for cmn and yue).

        ``variant`` is a timbre such as ``f2``, or empty for the voice's own; pitch and
        its range are 0-99, the rate is in words a minute.

        Returns:
            Samples (float32, mono, 16 kHz, not clipped: peaks can reach 1.01) and the
            phones as ``(name, start_s, end_s)`` in order, without pauses and without
            stress marks.
        """
        from scipy.signal import resample_poly

        self._blocks.clear()
        self._events.clear()
        self._set_voice(f"{voice}+{variant}" if variant else voice)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(
            data, len(data), 0, 0, 0, _CHARS_UTF8 | _END_PAUSE, None, None
        )
        self._library.espeak_Synchronize()
        native = np.frombuffer(b"".join(self._blocks), dtype=np.int16)
        samples = native.astype(np.float32) / 32768.0
        if samples.size:
            up, down, taps = _low_pass(self._native_rate)
            resampled = resample_poly(samples, up, down, window=taps)
            samples = resampled.astype(np.float32)
        return samples, _phones(self._events, len(native) / self._native_rate)


@cache
def _low_pass(rate: int) -> tuple[int, int, np.ndarray]:
    # scipy's default low-pass, designed once instead of for every sentence.
    from scipy.signal import firwin

    common = math.gcd(rate, SAMPLE_RATE)
    up, down = SAMPLE_RATE // common, rate // common
    longest = max(up, down)
    taps = firwin(20 * longest + 1, 1.0 / longest, window=("kaiser", 5.0))
    return up, down, taps.astype(np.float32)


def _phones(
    events: list[tuple[float, str]], duration_s: float
) -> list[tuple[str, float, float]]:
    phones = []
    ends = [*(start for start, _ in events[1:]), duration_s]
    for (start, name), end in zip(events, ends, strict=False):
        end = min(end, duration_s)
        # Stress marks go, and pauses, whose names begin with "_"; unreleased stops have
        # no duration of their own.
        name = name.strip("',%=")
        if name and not name.startswith("_") and end > start:
            phones.append((name, start, end))
    return phones


@cache
def engine() -> Espeak:
    """Return this process's engine."""
    return Espeak()
