"""What a head needs whose upstream routes by language: languages of its data."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table, write_table
from espnet2_lamer.fileio.foreign import read_yaml

_TABLE = "utt2langid"


@dataclass(frozen=True)
class HeadLanguages:
    """Languages of the utterances of ``train`` and ``dev``; ``names`` of training."""

    names: list[str]
    of: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(
        cls, dirs: Mapping[str, Sequence[Path]], texts: Mapping[str, Mapping[str, str]]
    ) -> "HeadLanguages":
        """Read ``utt2lang`` of the utterances that have text.

        Raises:
            RecipeError: Languages of dev are not those of training, or they are fewer
                than two.
        """
        of, places = {}, {}
        for part, directories in dirs.items():
            places[part] = ", ".join(str(path / "utt2lang") for path in directories)
            tables = [read_table(path / "utt2lang") for path in directories]
            known = {utt: lang for table in tables for utt, lang in table.items()}
            of[part] = {utt: known[utt] for utt in texts[part]}
        names, held_out = (sorted({*of[part].values()}) for part in ("train", "dev"))
        if len(names) < 2 or not {*held_out} <= {*names}:
            raise RecipeError(
                f"{places['train']}: tune lid_routed: found {', '.join(names)}, and in "
                f"dev {', '.join(held_out)}; expected two or more languages in "
                "training, and no other in dev"
            )
        return cls(names, of)

    def write(self, data: Path) -> list[str]:
        """Write their numbers where a head's data are; return ESPnet's options."""
        options = ["--model", "lid_routed", "--frontend_conf"]
        # Quoted: to YAML the language yes would be true.
        options.append(f"lid_routed.languages={json.dumps(self.names)}")
        for espnet, part in (("train", "train"), ("valid", "dev")):
            numbers = {u: str(self.names.index(x)) for u, x in self.of[part].items()}
            write_table(data / part / _TABLE, numbers)
            option = f"--{espnet}_data_path_and_name_and_type"
            options += [option, f"{data / part / _TABLE},lang,text_int"]
        return options


def routed(upstream: torch.nn.Module, output_dir: Path) -> torch.nn.Module:
    """Return a copy of an upstream with the LoRA that training in a folder gave it.

    Its weights are to come.
    """
    from espnet2_lamer.tasks.upstream_frontend import add_lid_routed

    conf = read_yaml(output_dir / "config.yaml")["frontend_conf"]
    upstream = copy.deepcopy(upstream)
    add_lid_routed(upstream, conf["lid_routed"], conf["layer"])
    return upstream
