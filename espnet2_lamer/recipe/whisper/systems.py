"""Which systems the options ask for, and by which routes each is decoded."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from espnet2_lamer.recipe.whisper.options import STUDENTS, SYSTEMS, WhisperOptions

#: The true language is given; nobody gives it.
AWARE, AGNOSTIC = "aware", "agnostic"
#: Folder of the experts, and their common name as one model that is told the language.
EXPERTS = "experts"
_CONFIG_OF = {
    "multilingual": "multilingual_config",
    "full": "full_config",
    "mole": "mole_config",
    **dict.fromkeys(STUDENTS, "kd_config"),
}
CONFIG_OPTIONS = ("expert_config", *dict.fromkeys(_CONFIG_OF.values()))


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    ``kind`` is one of ``options.SYSTEMS``; there is no ``config`` where nothing is
    trained. L1 of a MoLE and a student's rank are the config's where they are ``None``.
    """

    name: str
    kind: str
    config: Path | None
    shared_layers: int | None = None
    rank: int | None = None

    def directory(self, options: WhisperOptions) -> Path:
        """Return its ESPnet experiment."""
        return options.expdir / self.name

    def runs(self) -> dict[str, str]:
        """Return the route of each of its decodings, by the decoding's name."""
        if self.kind == EXPERTS:
            return {self.name: AWARE}
        if self.kind in STUDENTS:  # which never see the true language
            return {self.name: AGNOSTIC}
        return {f"{self.name}_{route}": route for route in (AWARE, AGNOSTIC)}


def planned_systems(options: WhisperOptions) -> list[System]:
    """List the systems asked for, in the order of the tables.

    ``--shared_layers`` and ``--student_rank`` with several values give a MoLE, or a
    student of each kind, per value.
    """
    planned = []
    for kind in SYSTEMS:
        if kind not in options.systems:
            continue
        config = getattr(options, _CONFIG_OF[kind]) if kind in _CONFIG_OF else None
        depths = options.shared_layers if kind == "mole" else []
        ranks = options.student_rank if kind in STUDENTS else []
        for depth, rank in product(depths or [None], ranks or [None]):
            name = (
                kind + (f"_l{depth}" if depth else "") + (f"_r{rank}" if rank else "")
            )
            planned.append(System(name, kind, config, depth, rank))
    return planned


def systems_of(options: WhisperOptions, *kinds: str) -> list[System]:
    """List the planned systems of some kinds."""
    return [system for system in planned_systems(options) if system.kind in kinds]


def needs_experts(options: WhisperOptions) -> bool:
    """Whether any system is made of the experts."""
    return bool(systems_of(options, EXPERTS, "mole", *STUDENTS))


def expert_dir(options: WhisperOptions, lang: str) -> Path:
    """Return the experiment of one language's expert."""
    return options.expdir / EXPERTS / lang


def packages(options: WhisperOptions) -> dict[System, Path]:
    """Return the zip of each system that is packed."""
    return {
        system: options.packed / f"whisper_{system.name}.zip"
        for system in systems_of(options, *options.pack)
    }
