"""Repairs to other packages.

Those of imports come before them. Repairs are idempotent, and importing this module
costs nothing.
"""

import argparse
import ast
import datetime
import functools
import importlib
import importlib.util
import os
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.errors import RecipeError, short_reason
from espnet2_lamer.fileio.atomic import atomic_path
from espnet2_lamer.fileio.foreign import parse_yaml
from espnet2_lamer.fileio.trust import protect

# What espnet-g2p-en looks for when ESPnet's text frontend imports it.
_NLTK_ARCHIVES = ("taggers/averaged_perceptron_tagger_eng.zip", "corpora/cmudict.zip")
# Packages whose functions trust their callers, see skip_type_checks.
_UNCHECKED = ("espnet", "espnet2", "inflect")
#: What ESPnet's checkpoints hold besides tensors and plain values.
REPORTER_TYPES = [
    np._core.multiarray.scalar,
    np.dtype,
    np.dtypes.Float64DType,
    datetime.timedelta,
]


def quiet_nltk() -> None:
    """Let ESPnet's tasks be imported without a download attempt by NLTK.

    Any task imports ``g2p_en``, which downloads a tagger and a dictionary when NLTK
    does not find their archives: printed errors without a network, a hang behind some
    firewalls. It only asks whether the files exist, and this recipe uses neither, so
    two empty archives in the user's cache directory answer it. ``NLTK_DATA`` names
    them, after NLTK's usual places with real data; where it is set, nothing happens.
    """
    if os.environ.get("NLTK_DATA"):
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        ours = _write_empty_archives(cache / "espnet2_lamer" / "nltk_data")
    except OSError:  # no home directory, or a read-only one
        user = os.getuid() if hasattr(os, "getuid") else "user"
        own = f"espnet2_lamer-{user}"
        ours = _write_empty_archives(Path(tempfile.gettempdir(), own, "nltk_data"))
    parents = [Path.home(), sys.prefix, "/usr/share", "/usr/local/share"]
    usual = [Path(parent) / "nltk_data" for parent in parents]
    present = [str(path) for path in usual if path.is_dir()]
    os.environ["NLTK_DATA"] = os.pathsep.join([*present, str(ours)])


def skip_type_checks() -> None:
    """Let ESPnet be imported without typeguard's checks of what its functions get.

    Their decorator compiles each function anew when it is imported: with those of
    inflect, which ``g2p_en`` imports, half of the time that a process takes to start.
    Modules that are there already, and other packages, keep their checks.
    """
    import typeguard

    theirs = typeguard.typechecked
    if theirs.__module__ == __name__:
        return

    def typechecked(target: Any = None, **options: Any) -> Any:
        if target is None:
            return functools.partial(typechecked, **options)
        # Of a static or class method its function.
        module = getattr(target, "__func__", target).__module__
        if module.partition(".")[0] in _UNCHECKED:
            return target
        return theirs(target, **options)

    typeguard.typechecked = typechecked


def before_espnet() -> None:
    """Do what comes before any import of ESPnet's tasks; safe to call again."""
    quiet_nltk()
    skip_type_checks()


def _write_empty_archives(directory: Path) -> Path:
    for name in _NLTK_ARCHIVES:
        if not (directory / name).is_file():
            with atomic_path(directory / name) as temporary:
                zipfile.ZipFile(temporary, "w").close()
    return directory


def espnet_nets(name: str) -> types.ModuleType:
    """ESPnet's module ``nets.<name>``: 202609 moved it to ``espnet2.legacy.nets``."""
    home = "espnet2.legacy" if importlib.util.find_spec("espnet2.legacy") else "espnet"
    return importlib.import_module(f"{home}.nets.{name}")


def patch_torchaudio_for_s3prl() -> None:
    """Put back the two torchaudio names that ``import s3prl.nn`` needs.

    ``s3prl.hub`` imports every upstream, and two of them fail on torchaudio 2.9 and
    later: ``byol_s`` calls ``torchaudio.set_audio_backend`` (how files are read;
    upstreams get waveforms here), now a no-op, and ``mos_prediction`` imports
    ``torchaudio.sox_effects``, now a module whose functions raise when called.
    """
    import torchaudio

    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None
    name = "torchaudio.sox_effects"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        module = types.ModuleType(name, "Stand-in for what torchaudio 2.9 removed.")
        module.apply_effects_tensor = module.apply_effects_file = _no_sox_effects
        sys.modules[name] = torchaudio.sox_effects = module


def tell_lengths_to_upstreams() -> None:
    """Let ``S3PRLUpstream`` say how long utterances are before it fills them up.

    It lengthens a batch that is shorter than 50 ms with zeros, which an upstream takes
    for sound. One of ours has an attribute ``samples`` and finds the real lengths
    there.
    """
    module = sys.modules.get("s3prl.nn.upstream")
    theirs = getattr(getattr(module, "S3PRLUpstream", None), "forward", None)
    if theirs is None or theirs.__module__ == __name__:
        return

    def forward(self, wavs, wavs_len):
        if hasattr(self.upstream, "samples"):
            self.upstream.samples = wavs_len.tolist()
        return theirs(self, wavs, wavs_len)

    module.S3PRLUpstream.forward = forward


def _no_sox_effects(*args: object, **kwargs: object) -> None:
    raise NotImplementedError("torchaudio 2.9 and later have no sox effects")


def prepare_espnet() -> None:
    """Make ESPnet treat what others wrote as data; safe to call any number of times.

    From here on torch unpickles nothing in this process, whoever asks it to. ESPnet's
    own checkpoints hold, besides tensors, its reporter's numpy averages and time spans:
    these are declared harmless, so that training resumes.
    """
    import torch

    protect()
    before_espnet()
    torch.serialization.add_safe_globals(REPORTER_TYPES)
    _read_plain_option_values()
    _read_no_commands()


def _read_plain_option_values() -> None:
    """Let ESPnet read ``--encoder_conf KEY=VALUE`` and its like as plain YAML.

    Until 202511 it hands values to ``eval`` and to YAML's loader of Python objects, and
    later to a loader that expands aliases without end; the recipe makes some values of
    names that another's experiment definition holds.
    """
    from espnet2.utils import nested_dict_action

    def load(text: str, Loader: object = None) -> object:  # noqa: N803
        return parse_yaml(text, f"option value {text!r}")

    nested_dict_action.eval = lambda text, *_: ast.literal_eval(text)
    nested_dict_action.yaml = types.SimpleNamespace(
        load=load, safe_load=load, Loader=None
    )


def bound_beams() -> None:
    """Let no beam search of ESPnet's keep more hypotheses than there are tokens.

    The first step has a hypothesis per token to choose from: with a default beam of 20
    a vocabulary of a few languages ends in "selected index k out of range".
    """
    search = espnet_nets("beam_search").BeamSearch
    theirs = search.__init__
    if theirs.__module__ == __name__:
        return

    def __init__(self, *args: object, **kwargs: object) -> None:  # noqa: N807
        theirs(self, *args, **kwargs)
        self.beam_size = min(self.beam_size, self.n_vocab)

    search.__init__ = __init__


def escape_help(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Mend help texts whose per cent sign argparse takes for a format.

    ESPnet 202611 has one in ``asr_inference``, whose ``--help`` ends in a traceback.
    """
    for action in parser._actions:
        try:
            parser._get_formatter()._expand_help(action)
        except (TypeError, ValueError):
            action.help = action.help.replace("%", "%%")
    return parser


def reporter_seconds(value: datetime.timedelta | dict[str, float]) -> float:
    """Return a duration of ESPnet's reporter; 202609 keeps seconds in a mapping."""
    if isinstance(value, dict):
        return value["__timedelta_seconds__"]
    return value.total_seconds()


def _read_no_commands() -> None:
    """Let the readers of ESPnet's ``kaldi_ark`` data read files alone.

    kaldiio, and from ESPnet 202609 on omniio, let a shell run an entry ``command |`` of
    an scp file; to kaldiio an ark may hold a pickle. ESPnet's type ``sound`` knows
    neither.
    """
    for name in ("kaldiio", "omniio.tools.kaldi"):
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            continue
        package = importlib.import_module(name)
        matio = importlib.import_module(f"{name}.matio")
        if hasattr(matio, "_reads_files_alone"):
            continue
        matio._reads_files_alone = True
        matio.load_mat = package.load_mat = _clear(matio.load_mat)
        matio.open_like_kaldi = _files_only(matio.open_like_kaldi)
        if hasattr(matio, "read_object"):  # omniio's, of an ark that is open
            matio.read_object = _clear(matio.read_object)
        if hasattr(matio, "pickle"):
            matio.pickle = types.SimpleNamespace(
                load=_no_pickle, dump=matio.pickle.dump
            )


def _clear(read: Callable) -> Callable:
    def named(source: object, *args: object, **kwargs: object) -> object:
        try:
            return read(source, *args, **kwargs)
        except RecipeError:
            raise
        except Exception as error:  # damage shows in many ways
            raise RecipeError(
                f"{getattr(source, 'name', source)}: not readable as features "
                f"({short_reason(error)}); write them anew"
            ) from error

    return named


def _files_only(open_file: Callable) -> Callable:
    def checked(name, mode: str = "r"):
        if isinstance(name, str) and "|" in (name.strip()[:1], name.strip()[-1:]):
            raise RecipeError(
                f"{name!r} is a shell pipe, expected a file: run the command yourself "
                "and name what it writes"
            )
        return open_file(name, mode)

    return checked


def _no_pickle(handle, **kwargs: object) -> None:
    raise RecipeError(
        f"{getattr(handle, 'name', 'an ark')}: holds a pickle, expected matrices; "
        "write the features anew"
    )
