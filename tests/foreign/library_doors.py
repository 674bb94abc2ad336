"""Doors of the library; those named ``stock_*`` end in ESPnet's or S3PRL's loaders."""

import json
import shutil

import yaml
from safetensors.torch import save

import espnet2_lamer
from espnet2_lamer.convert.packed import unpack_model
from tests.foreign.sound_files import (
    ASR,
    BEST,
    changed_zip,
    door,
    experiment,
    member,
    named_door,
)


@door
def load_model_zip_weights(good, here, payload):
    path = changed_zip(good, here, "ssl.zip", model_pth=payload.content())
    espnet2_lamer.load_model(path)


@door
def load_model_zip_config(good, here, payload):
    config = payload.in_config(member(good, "ssl.zip", "config.yaml"))
    espnet2_lamer.load_model(changed_zip(good, here, "ssl.zip", config_yaml=config))


@door
def load_model_zip_meta(good, here, payload):
    meta = member(good, "ssl.zip", "meta.yaml")
    text = yaml.safe_dump(meta | {"files": {"ssl_model_file": payload.text()}})
    if payload.form == "YAML tag":
        text = yaml.safe_dump(meta) + payload.document()
    espnet2_lamer.load_model(changed_zip(good, here, "ssl.zip", meta_yaml=text))


@door
def load_model_zip_token_list(good, here, payload):
    config = member(good, "ssl.zip", "config.yaml") | {"token_list": payload.text()}
    text = yaml.safe_dump(config)
    espnet2_lamer.load_model(changed_zip(good, here, "ssl.zip", config_yaml=text))


@door
def unpack_model_members(good, here, payload):
    members = {f"../{payload.mark.name}": b"", ".complete": payload.content()}
    name = "../mark" if payload.form == "zip that escapes" else ".complete"
    path = changed_zip(good, here, "asr.zip", **{name: members.get(name, b"")})
    unpack_model(path, here / "cache")


@door
def load_model_experiment_weights(good, here, payload):
    espnet2_lamer.load_model(experiment(good, here, payload))


@door
def load_model_experiment_config(good, here, payload):
    espnet2_lamer.load_model(experiment(good, here, payload, weights=False))


@named_door
def load_model_plain_experiment_base(good, here, payload):
    """A model that was trained as a whole: its config names where it began."""
    directory = shutil.copytree(good.root / "exp", here / "exp")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config["encoder_conf"] = {"base": payload.text(), "lamer": None}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    from espnet2_lamer.convert import load_hubert

    load_hubert(directory)


@door
def load_model_adapter(good, here, payload):
    (here / "a.safetensors").write_bytes(payload.content())
    espnet2_lamer.load_model(here / "a.safetensors", base=good.base)


@door
def load_model_adapter_base_name(good, here, payload):
    from espnet2_lamer.tasks.pretrained import METADATA, content_digest, read_adapter

    adapter = read_adapter(good.root / "ssl.safetensors")
    metadata = dict(adapter.metadata)
    metadata["base"] = {**metadata["base"], "name": payload.text()}
    if payload.form == "URL":
        metadata["base"]["name"] = "someone/else"  # a name that could be fetched
    metadata["sha256"] = content_digest(adapter.tensors, metadata)
    text = json.dumps(metadata)
    (here / "a.safetensors").write_bytes(save(adapter.tensors, {METADATA: text}))
    espnet2_lamer.load_model(here / "a.safetensors")


@door
def load_model_hugging_face_config(good, here, payload):
    directory = shutil.copytree(good.base, here / "base")
    config = json.loads((directory / "config.json").read_text())
    text = json.dumps(config | payload.mapping())
    text = payload.document() if payload.form == "YAML tag" else text
    (directory / "config.json").write_text(text)
    espnet2_lamer.load_model(directory)


@door
def load_model_hugging_face_bin(good, here, payload):
    directory = shutil.copytree(good.base, here / "base")
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(payload.content())
    espnet2_lamer.load_model(directory)


@door
def load_model_hugging_face_safetensors(good, here, payload):
    directory = shutil.copytree(good.base, here / "base")
    (directory / "model.safetensors").write_bytes(payload.content())
    espnet2_lamer.load_model(directory)


@door
def load_model_fairseq(good, here, payload):
    espnet2_lamer.load_model(payload.file("pt"))


@door
def load_model_s3prl_file(good, here, payload):
    file = payload.text() if payload.form == "URL" else payload.file()
    espnet2_lamer.load_model(f"s3prl:hubert_custom:{file}")


@door
def load_model_s3prl_other_upstream(good, here, payload):
    file = payload.text() if payload.form == "URL" else payload.file()
    espnet2_lamer.load_model(f"s3prl:wavlm_local:{file}")


@door
def stock_speech2text_config(good, here, payload):
    from espnet2.bin.asr_inference import Speech2Text

    config = payload.in_config(good.config)
    path = changed_zip(good, here, "asr.zip", config_yaml=config)
    Speech2Text(**unpack_model(path, here / "cache"), beam_size=1, ctc_weight=1.0)


@door
def stock_speech2text_weights(good, here, payload):
    from espnet2.bin.asr_inference import Speech2Text

    path = changed_zip(good, here, "asr.zip", model_pth=payload.content())
    Speech2Text(**unpack_model(path, here / "cache"), beam_size=1, ctc_weight=1.0)


@door
def stock_speech2text_vocabulary(good, here, payload):
    from espnet2.bin.asr_inference import Speech2Text

    config = good.config | {"token_type": "bpe", "bpemodel": payload.text()}
    path = changed_zip(good, here, "asr.zip", config_yaml=yaml.safe_dump(config))
    Speech2Text(**unpack_model(path, here / "cache"), beam_size=1, ctc_weight=1.0)


@door
def stock_hubert_task(good, here, payload):
    from espnet2.tasks.hubert import HubertTask

    config = payload.in_config(member(good, "ssl.zip", "config.yaml"))
    path = changed_zip(
        good, here, "ssl.zip", config_yaml=config, model_pth=payload.content()
    )
    files = unpack_model(path, here / "cache")
    HubertTask.build_model_from_file(files["ssl_train_config"], files["ssl_model_file"])


@door
def decoding_finished_head(good, here, payload):
    from espnet2_lamer.evaluation.head_decoding import load_speech2text

    directory = shutil.copytree(good.root / "head", here / "final")
    (directory / "model.pth").write_bytes(payload.content())
    load_speech2text(directory, {"beam_size": 1, "ctc_weight": 1.0})


@named_door
def manifest(good, here, payload):
    from espnet2_lamer.data.audio import read_16k
    from espnet2_lamer.data.audio_decoding import Unusable
    from espnet2_lamer.data.sources import READERS, Reading, Source
    from espnet2_lamer.errors import RecipeError

    path = here / "m.tsv"
    path.write_text(f"utt_id\tpath\tlang\nu0\t{payload.text()}\teng\n")
    for row in READERS["tsv"](Source("tsv", str(path)), Reading()):
        try:
            read_16k(row.path)
        except Unusable as error:
            raise RecipeError(str(error)) from error


@door
def stock_s3prl_hub_ours(good, here, payload):
    from s3prl import hub

    espnet2_lamer.register(s3prl=True)
    hub.lamer_ssl_local(str(payload.file("zip")))


@door
def stock_s3prl_hub_espnet_hubert(good, here, payload):
    from s3prl import hub

    espnet2_lamer.register(s3prl=True)
    directory = experiment(good, here, payload)
    hub.espnet_hubert_local(str(directory / BEST))


@door
def whisper_checkpoint(good, here, payload):
    from espnet2_lamer.whisper.half import read_half

    read_half("encoder", str(payload.file()), None)


@door
def whisper_experiment(good, here, payload):
    from espnet2_lamer.tasks.asr import load_whisper_model

    halves = {"whisper": str(good.root / "whisper.pt"), "lora": None}
    config = ASR | {
        **{"model": "whisper_lora", "encoder": "whisper_lora", "input_size": 1},
        **{"decoder": "whisper_lora", "encoder_conf": halves, "decoder_conf": halves},
        **{"model_conf": {}, "preencoder": None, "frontend_conf": {}},
    }
    (here / "config.yaml").write_text(payload.in_config(config))
    load_whisper_model(here / "config.yaml", payload.file())


@door
def whisper_expert(good, here, payload):
    from espnet2_lamer.whisper.lora import load_expert

    load_expert(good.whisper, "eng", payload.file("safetensors"))


@door
def whisper_teacher_cache(good, here, payload):
    from espnet2_lamer.whisper.student import TeacherCache

    cache = TeacherCache(here, "teacher")
    key = cache.key("u", 1, [1])
    path = here / key[:2] / f"{key}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(payload.content())
    assert cache.read([key], True) is None


@door
def whisper_ctranslate2(good, here, payload):
    from espnet2_lamer.whisper.fetch import read_tensors

    path = payload.file("bin")
    read_tensors(path.read_bytes(), path)
