"""What a run takes: seconds of every stage and bytes of every folder, from trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from espnet2_lamer.data.converting import converted_bytes
from espnet2_lamer.evaluation.downstream import head_bytes
from espnet2_lamer.fileio.foreign import read_yaml
from espnet2_lamer.recipe.benchmark import ASR_TRACKS, LID_TRACKS, alone, eval_langs
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.plan_parts import Speech
from espnet2_lamer.recipe.plan_speech import shortest
from espnet2_lamer.recipe.plan_trial import Trials
from espnet2_lamer.recipe.schedule import (
    Schedule,
    own_schedule,
    schedule_by_hours,
    seconds_per_update,
)
from espnet2_lamer.train.checkpoint import experiment_bytes
from espnet2_lamer.units.features import feature_bytes

#: Frames per second.
FRAMES = 50
# Rates that no trial measures, of the mini preset's committed run on two cores:
# synthesis and conversion of a second of audio by a job, a start of Python and ESPnet,
# a head's own start, its decoding and tests, the analysis without forward passes.
_SYNTHESIS, _CONVERSION = 0.007, 0.01
# Of a second of a recording to find its pauses (docs/segmentation.md).
_CUTTING = 15 / 3600
_START, _HEAD_START, _TESTS, _REPORTS = 10.0, 3.0, 4.0, 60.0
# Audio that the analysis hears of a model, in seconds, and rounds of k-means.
_HEARD, _ROUNDS = 1500.0, 20
# Products and sums of a core per second where k-means is bound by memory.
_FLOPS = 2e10


@dataclass(frozen=True)
class Amounts:
    """Seconds of speech that stages see: per language, of training and validation."""

    train: Mapping[str, float]
    dev: Mapping[str, float]
    features: float
    texts: Sequence[str]
    schedule: Schedule
    per_update: float

    @property
    def audio(self) -> float:
        """Seconds of training speech."""
        return sum(self.train.values())

    @property
    def held_out(self) -> float:
        """Seconds of validation speech."""
        return sum(self.dev.values())


def amounts(options: Options, speech: Speech) -> Amounts:
    """Say what the options take of the speech, as stage 2 will."""
    low, high = shortest(options), options.max_duration
    train, dev = {}, {}
    for lang, parts in speech.parts.items():
        hours = parts["train"].hours(low, high)
        if lang in options.replay_langs:
            hours = min(hours, options.replay_hours)
        held_out = parts["dev"].hours(low, high) if "dev" in parts else 0.0
        train[lang] = 3600 * hours
        dev[lang] = 3600 * min(held_out, options.dev_hours or held_out)
    config = read_yaml(options.ssl_config)
    schedule = own_schedule(config)
    if options.passes:
        hours = sum(train.values()) / 3600
        schedule = schedule_by_hours(hours, options.passes, config)
    wanted = eval_langs(options)
    texts = [
        lang
        for lang, parts in speech.parts.items()
        if lang in wanted and all(p.text for p in parts.values() if p.files)
        if parts["train"].text
    ]
    features = sum(min(s, 3600 * options.kmeans_hours) for s in train.values())
    update = seconds_per_update(config)
    return Amounts(train, dev, features, texts, schedule, update)


def heads_of(options: Options, texts: Sequence[str], tracks: Sequence[str]) -> int:
    """Return how many heads of some tracks there will be."""
    tasks = {"asr": len(texts), "multi_asr": bool(texts)}
    tasks |= {"lid": not alone(options), "asr_lid": bool(texts)}
    several = (options.upstreams, options.upstream_mode, options.budgets)
    several += (options.eval_seeds or [0],)
    factor = prod(map(len, several)) * max(1, len(options.learning_rates))
    return factor * sum(tasks[track] for track in options.tracks if track in tracks)


def stage_seconds(
    options: Options, speech: Speech, found: Amounts, trials: Trials
) -> dict[str, float | None]:
    """Estimate every stage by its name; None where the trial it needs is missing."""
    jobs = max(1, options.nj)
    teach = trials.teacher and trials.teacher / max(1, min(jobs, _cores()))
    every = 3600 * sum(
        p.hours() for parts in speech.parts.values() for p in parts.values()
    )
    update = trials.update and trials.update + (trials.control or 0.0)
    steps = found.schedule.updates * found.per_update
    trainings = 1 + options.control
    forward, models = trials.forward, len(options.upstreams)
    heads = {
        "asr_heads": (options.asr_config, ASR_TRACKS, found.texts),
        "lid_heads": (options.lid_config, LID_TRACKS, options.langs),
    }
    number = {
        name: heads_of(options, found.texts, tracks)
        for name, (_, tracks, _) in heads.items()
    }
    synthetic = options.corpus == "mini"
    prepared = 2.2 * every if synthetic else every
    convert = 0.0 if synthetic else _CONVERSION / jobs
    clustering = found.features * FRAMES * options.n_clusters * _ROUNDS * 2
    times: dict[str, float | None] = {
        # The training of a base is tried by nobody.
        "checkpoints": None if options.retrain else _START,
        "data": _SYNTHESIS * prepared / jobs
        if synthetic
        else 1.0 + _CUTTING * speech.recordings / jobs,
        "selection": 3 + convert * (found.audio + found.held_out),
        "features": teach and 3 + teach * found.features,
        "clusters": teach
        and trials.teacher_dim
        and 5 + clustering * trials.teacher_dim / _FLOPS / jobs,
        "labels": teach and 3 + teach * (found.audio - found.features + found.held_out),
        "statistics": 0.1,
        "pretraining": update
        and _START
        + steps * update
        + trainings * found.schedule.epochs * found.held_out * forward,
        "analysis": forward and _REPORTS + _HEARD * forward * (models),
        "evaluation_sets": 3 + convert * every,
        "results": forward
        and sum(number.values()) * (_TESTS + 0.1 * every * forward / 3),
        "packing": 7.0,
        "upload": 0.0,
    }
    if options.recluster:
        # The first round's model, of the base's size, takes the teacher's place.
        heard = (found.audio + found.held_out) / max(1, min(jobs, _cores()))
        times["reclustering"] = (
            times["pretraining"]
            and forward
            and trials.dim
            and times["pretraining"]
            + forward * heard
            + clustering * trials.dim / _FLOPS / jobs
        )
    in_loop = heads_in_loop(options, trials)
    for name, (config, _, langs) in heads.items():
        head = read_yaml(config)
        audio = every / max(1, len(langs))
        updates = _head_updates(head, audio)
        store = every * (forward or 0.0) * _stored(options, trials)
        heard = in_loop * number[name] * _heard(head, updates) * (forward or 0.0)
        times[name] = trials.head and (
            number[name] * (_HEAD_START + updates * trials.head)
            + heard
            + store * (name == "asr_heads" and number[name] > 0)
        )
    return times


def _dropping(options: Options) -> list[str]:
    """Upstreams that drop something in train mode if the base does.

    What the recipe trains does not.
    """
    return [name for name in options.upstreams if name != "lamer"]


def heads_in_loop(options: Options, trials: Trials) -> float:
    """Return the share of heads whose upstream runs in every epoch, unstored."""
    if "train" not in options.upstream_mode or not trials.drops:
        return 0.0
    share = len(_dropping(options)) / max(1, len(options.upstreams))
    return share / len(options.upstream_mode)


def _stored(options: Options, trials: Trials) -> int:
    """Return how many upstreams' features are stored."""
    never = heads_in_loop(options, trials) and "eval" not in options.upstream_mode
    return len(options.upstreams) - (len(_dropping(options)) if never else 0)


def _heard(config: Mapping, updates: float) -> float:
    """Seconds of audio that a head's training hears, at five an utterance."""
    return 5 * updates * config.get("batch_size", 8) * config.get("accum_grad", 1)


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _head_updates(config: Mapping, audio: float) -> float:
    """Updates of a head; without a number of its own, by passes over the audio."""
    batches = config.get("num_iters_per_epoch")
    batches = batches or max(1, audio / 5 / config.get("batch_size", 8))
    return config["max_epoch"] * batches / config.get("accum_grad", 1)


def disk_bytes(
    options: Options, speech: Speech, found: Amounts, trials: Trials
) -> dict[str, float | None]:
    """Estimate what a run leaves on disk, by folder."""
    every = 3600 * sum(
        p.hours() for parts in speech.parts.values() for p in parts.values()
    )
    mini, models = options.corpus == "mini", _stored(options, trials)
    known = trials.base > 0
    size = 4 if options.store_dtype == "float32" else 2
    store = every * FRAMES * (trials.dim or 0) * size * models if found.texts else 0
    heads = heads_of(options, found.texts, options.tracks)
    whole = trials.base + trials.trainable
    return {
        "data": converted_bytes(2.2 * every) if mini else 1e6 + speech.unpacked,
        "dump/raw": 1e6 if mini else converted_bytes(every),
        "dump/features": trials.teacher_dim
        and feature_bytes(trials.teacher_dim, round(found.features * FRAMES)),
        "dump/feature_store": min(store, 1e9 * options.feature_store_gb * max(1, heads))
        if trials.dim
        else None,
        **feature_cache_bytes(options, found, trials),
        "exp/ssl": experiment_bytes(trials.trainable) * (1 + bool(options.recluster))
        if known
        else None,
        "exp/heads": heads * head_bytes(trials.head_parameters, whole)
        if known
        else None,
        "exp/packed, exp/random": 4 * (8 * whole + trials.base) if known else None,
    }


def feature_cache_bytes(
    options: Options, found: Amounts, trials: Trials
) -> dict[str, float | None]:
    """What ``feature_cache_gb`` of the config takes: float32, and nothing cropped."""
    limit = 1e9 * (read_yaml(options.ssl_config).get("feature_cache_gb") or 0)
    if not limit:
        return {}
    frames = FRAMES * (found.audio + found.held_out)
    needed = trials.channels and min(limit, 4 * trials.channels * frames)
    return {"dump/feature_cache": needed}


def seconds_of_another_seed(
    options: Options, chosen: Sequence[str], times: Mapping[str, float | None]
) -> float | None:
    """Estimate one more of all that has the seed; None where a part is not known.

    ``chosen`` names the run's stages and ``times`` their seconds. Of the heads only
    those of the trained model are trained again.
    """
    training = "pretraining", "reclustering"
    heads = "analysis", "asr_heads", "lid_heads", "results"
    shares = dict.fromkeys(training, 1.0)
    shares |= dict.fromkeys(heads, 1 / max(1, len(options.upstreams)))
    parts = [(times.get(name), shares[name]) for name in shares if name in chosen]
    if not {*training} & {*chosen} or any(seconds is None for seconds, _ in parts):
        return None
    return sum(seconds * share for seconds, share in parts)
