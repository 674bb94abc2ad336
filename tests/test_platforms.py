"""Our modules live without what only Linux has, and without the extras.

The names are hidden from our modules alone, by an ``__import__`` that sees who asks: on
Windows and macOS other packages have branches of their own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from espnet2_lamer.errors import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PACKED = ROOT / "tests/fixtures/version_0_1_0/packed.zip"
# Of Windows; `signal` there has these numbers and no others.
HIDE_PLATFORM = '''
import builtins, signal, os, types
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"}
NAMES = {
    "os": """uname getuid geteuid getgid fork forkpty sched_getaffinity
        sched_setaffinity killpg setsid getpgid getpgrp setpgid mkfifo statvfs chown
        getloadavg nice sync wait waitid posix_fadvise posix_fallocate sysconf
        copy_file_range sendfile WNOHANG O_NONBLOCK O_DIRECTORY""".split(),
    "signal": [
        name
        for name in dir(signal)
        if name.startswith("SIG") and name[3:] not in "ABRT FPE ILL INT SEGV TERM"
        and name not in ("SIG_DFL", "SIG_IGN")
    ]
    + "pthread_sigmask pthread_kill sigwait pause alarm setitimer siginterrupt".split(),
}
hidden = {}
for name, missing in NAMES.items():
    module = __import__(name)
    hidden[name] = types.ModuleType(name)
    vars(hidden[name]).update(
        {key: value for key, value in vars(module).items() if key not in missing}
    )
hidden["os"].name = "nt"
real = builtins.__import__
def ours(name, globals=None, *rest, **more):
    found = real(name, globals, *rest, **more)
    if (globals or {}).get("__name__", "").startswith("espnet2_lamer"):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return hidden.get(name.partition(".")[0], found)
    return found
builtins.__import__ = ours
'''
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "espnet2_lamer").rglob("*.py"))
]


def python(code, *arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=None,
    )


def test_what_is_hidden_is_hidden_from_ours_alone():
    code = (
        HIDE_PLATFORM
        + "import resource, os; os.uname(), signal.SIGUSR1\n"
        + "exec('import os; os.uname', {'__name__': 'espnet2_lamer.x'})"
    )
    done = python(code)
    assert done.stderr.splitlines()[-1].startswith("AttributeError"), done.stderr
    done = python(HIDE_PLATFORM + "exec('import fcntl', {'__name__': 'espnet2_lamer'})")
    assert "No module named 'fcntl'" in done.stderr


def test_every_module_is_imported():
    code = f"for name in {MODULES!r}: __import__(name)"
    done = python(HIDE_PLATFORM + code)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def speech(tmp_path):
    for name in ("a", "b"):
        samples = torch.randn(16000).numpy() * 0.1
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
    return tmp_path


def test_the_library_is_used(speech):
    code = HIDE_PLATFORM + (
        "import sys, torch, espnet2_lamer\n"
        "model = espnet2_lamer.load_model(sys.argv[1])\n"
        "print(len(model.extract_features(torch.randn(1, 16000))[0]))\n"
        "from espnet2_lamer.bin import export, extract\n"
        "extract.main(['--model', sys.argv[1], '--layer', '1', '--output', 'f.npz',"
        " 'a.wav', 'b.wav'])\n"
    )
    done = python(code, PACKED, cwd=speech)
    assert done.returncode == 0, done.stderr
    assert (speech / "f.npz").is_file()


HIDE_EXTRAS = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in {names!r} else real(name, *rest)
)
"""


def without(*extras, but=frozenset()):
    names = {name for name, extra in EXTRAS.items() if extra in extras}
    return HIDE_EXTRAS.format(names=names - but)


def test_the_library_needs_no_extra(speech):
    code = without(*EXTRAS.values()) + (
        "import sys, torch, espnet2_lamer\n"
        "espnet2_lamer.register()\n"
        "import espnet2_lamer.tasks.asr, espnet2_lamer.tasks.hubert\n"
        "espnet2_lamer.load_model(sys.argv[1])\n"
        "from espnet2_lamer.bin import __main__ as lamer, extract\n"
        "extract.main(['--model', sys.argv[1], '--layer', '1', '--output', 'f.npz',"
        " 'a.wav'])\n"
        "for name in ('analyze', 'export', 'score', 'recipe', 'whisper_recipe'):\n"
        "    try:\n"
        "        sys.argv = ['lamer', name, '--help']; lamer.main()\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, name\n"
    )
    done = python(code, PACKED, cwd=speech)
    assert done.returncode == 0, done.stderr


WHISPER_TRAINING = """
from espnet2_lamer.tasks.asr import LamerASRTask
args = LamerASRTask.get_parser().parse_args(
    ["--output_dir", "x", "--token_list", "a.txt", "--model", "whisper_lora"]
    + "--encoder whisper_lora --decoder whisper_lora --init none".split()
)
LamerASRTask.build_model(args)
"""
NEED_EXTRAS = [
    ("whisper", "import espnet2_lamer.whisper.student"),
    ("whisper", WHISPER_TRAINING),
    (
        "mini",
        "from espnet2_lamer.data import mini_plan; mini_plan.load_sentences('eng')",
    ),
    ("mini", "from espnet2_lamer.data.espeak import engine; engine()"),
    ("dask", "from espnet2_lamer.parallel import _connect; _connect('tcp://x:1')"),
]


def test_an_error_names_the_extra(tmp_path):
    # One process for all: what takes time is torch's and ESPnet's import.
    (tmp_path / "a.txt").write_text("<blank>\n<unk>\na\n<sos/eos>\n")
    # joblib, which Whisper's code imports, may need cloudpickle itself.
    code = without("whisper", "mini", "dask", but={"cloudpickle"}) + (
        "import json\n"
        "errors = []\n"
        f"for code in {[code for _, code in NEED_EXTRAS]!r}:\n"
        "    try:\n"
        "        exec(code)\n"
        "        errors.append('none')\n"
        "    except Exception as error:\n"
        "        errors.append(f'{type(error).__name__}: {error}')\n"
        "print(json.dumps(errors))\n"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    for (extra, _), error in zip(NEED_EXTRAS, errors, strict=True):
        assert error.startswith("RecipeError"), error
        assert f"espnet2-lamer[{extra}]" in error, error


def test_training_names_tensorboard_before_anything_is_read(tmp_path):
    code = without("train") + (
        "from espnet2_lamer.tasks.asr import LamerASRTask\n"
        "from espnet2_lamer.tasks.hubert import LamerHubertTask\n"
        "for task in (LamerASRTask, LamerHubertTask):\n"
        "    more = ['--num_classes', '4'] if task is LamerHubertTask else []\n"
        "    try:\n"
        "        task.main(cmd=['--output_dir', 'x', '--token_list', 'no', *more])\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    printed = python(code, cwd=tmp_path).stdout
    assert printed.count("use_tensorboard (false does without) needs") == 2, printed
    assert printed.count("pip install 'espnet2-lamer[train]'") == 2
    assert not (tmp_path / "x").exists()


def test_every_extra_that_errors_name_has_its_package():
    import configparser

    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg", encoding="utf-8")
    brought = cfg["options.extras_require"]
    for package, extra in EXTRAS.items():
        names = {"whisper": "openai-whisper"}.get(package, package.replace("_", "-"))
        wanted = "hsk-sentences-audio" if package.startswith("hsk") else names
        assert wanted in brought[extra], package
