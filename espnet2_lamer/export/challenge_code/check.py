"""Call the challenge's function as its server does; print time and memory.

    python check.py [AUDIO ...]

Without a network, on noise of several lengths and on the files that are named. Exit
code 1 where the function does not keep to its interface.
"""

import argparse
import importlib
import json
import socket
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RATE = 16000
#: Seconds of noise: nothing, less than a frame, what data have, more than they have.
LENGTHS = (0.0, 0.01, 0.1, 1.0, 5.0, 20.0, 65.0)
#: Memory of the server's GPU, in GB.
LIMIT = 24
# Modules that come from nowhere else.
_BUILT_IN = {*sys.stdlib_module_names, "__main__", "model"}


def refuse(*address):
    """Stand in for a network; the server has none either."""
    raise OSError("no network here, as on the challenge's server")


def waveforms(paths=()):
    """Yield name and samples of noise, then of the files."""
    for seconds in LENGTHS:
        draw = np.random.default_rng(int(100 * seconds))
        noise = 0.1 * draw.standard_normal(int(seconds * RATE))
        yield f"noise of {seconds:g} s", noise.astype(np.float32)
    for path in paths:
        from espnet2_lamer.data.audio_decoding import open_audio
        from espnet2_lamer.data.usable import usable_speech

        with open_audio(str(path)) as source:
            yield Path(path).name, usable_speech(source)[0]


def check(api, languages, paths=()):
    """Call ``api`` on every waveform, without a language and with each end of the list.

    Returns:
        A row per call: name, seconds, seconds taken, given and found language, text.

    Raises:
        AssertionError: It does not return two texts, the first a language; it changes
            its input; or it answers twice differently.
    """
    rows = []
    for name, samples in waveforms(paths):
        for given in (None, languages[0]):
            before = samples.copy()
            start = time.perf_counter()
            answer = api(samples, given) if given else api(samples)
            taken = time.perf_counter() - start
            what = f"{name}, true_lid {given}"
            ok = isinstance(answer, tuple) and len(answer) == 2
            assert ok and all(isinstance(part, str) for part in answer), (
                f"{what}: found {answer!r}, expected two texts"
            )
            lang, text = answer
            assert lang in languages, f"{what}: found the language {lang!r}"
            assert given in (None, lang), f"{what}: found the language {lang!r}"
            assert "[" not in text, f"{what}: a tag is left in {text!r}"
            assert np.array_equal(before, samples), f"{what}: the waveform was changed"
            rows.append([name, len(samples) / RATE, taken, given, lang, text])
    name, samples = next(iter(waveforms()))
    # The order of calls must not matter.
    assert list(api(samples)) == rows[0][4:], f"{name}: another answer the second time"
    return rows


def memory():
    """Return the most memory of this process and of its GPU so far, in GB."""
    # Not there on every system that only imports this.
    import resource

    torch = importlib.import_module("torch")
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    # Linux counts in KiB.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return most / 1e9, gpu / 1e9


def main():
    """Run the check."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("audio", nargs="*", help="files to recognise besides")
    parser.add_argument("--json", help="also write what was found here")
    args = parser.parse_args()
    socket.socket.connect = socket.socket.connect_ex = refuse
    sys.path.insert(0, str(HERE))
    start = time.perf_counter()
    model = importlib.import_module("model")
    head = model.load()
    loading = time.perf_counter() - start
    try:
        rows = check(model.API, head.languages, args.audio)
    except AssertionError as error:
        sys.exit(f"check.py: {error}")
    print(f"{'input':24} {'seconds':>8} {'taken':>8} {'given':>5} lang  text")
    for name, seconds, taken, given, lang, text in rows:
        line = f"{name[:24]:24} {seconds:8.2f} {taken:8.3f} {given or '':>5} {lang:4}"
        print(f"{line}  {text[:40]}")
    ram, gpu = memory()
    spoken = sum(row[1] for row in rows)
    factor = sum(row[2] for row in rows) / spoken
    print(f"loading: {loading:.1f} s on {head.device}")
    print(f"real-time factor: {factor:.4f} ({spoken:.0f} s of audio)")
    print(f"peak memory: process {ram:.2f} GB, GPU {gpu:.2f} of {LIMIT} GB")
    if args.json:
        found = {
            "rows": rows,
            "languages": head.languages,
            "device": head.device,
            "loading": loading,
            "real_time_factor": factor,
            "process_gb": ram,
            "gpu_gb": gpu,
            "modules": sorted({m.split(".")[0] for m in sys.modules} - _BUILT_IN),
        }
        Path(args.json).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
