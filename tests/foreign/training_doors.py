"""Doors of pretraining, of heads, and of decoding with them."""

import yaml

from tests.foreign.command_lines import command, head_training, pretraining
from tests.foreign.sound_files import door, experiment, named_door


@named_door
def pretraining_base(good, here, payload):
    conf = {"base": payload.text(), "lamer": {"allocation": "2,4", "rank": 2}}
    command("hubert_train", *pretraining(good, here, encoder_conf=conf))


@door
def pretraining_option_value(good, here, payload):
    value = payload.code if payload.form == "text for eval" else payload.text()
    command("hubert_train", *pretraining(good, here), f"--encoder_conf=lamer={value}")
    raise AssertionError("no such value is an option of the experts")


@named_door
def pretraining_config(good, here, payload):
    arguments = pretraining(good, here, init_param=[payload.text()])
    with open(here / "train.yaml", "a") as config:
        config.write(payload.document() if payload.form == "YAML tag" else "")
    command("hubert_train", *arguments)


@door
def pretraining_init_param(good, here, payload):
    command(
        "hubert_train", *pretraining(good, here), f"--init_param={payload.file()}:a:b"
    )


@door
def pretraining_expand_from(good, here, payload):
    directory = experiment(good, here, payload)
    command("hubert_train", *pretraining(good, here), f"--expand_from={directory}")


@door
def pretraining_resume(good, here, payload):
    from espnet2_lamer.fileio.hashing import sha256_file

    path = here / "out" / "checkpoints" / "update_00000001.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(payload.content())
    path.with_name(f"{path.name}.sha256").write_text(f"{sha256_file(path)}  x\n")
    command("hubert_train", *pretraining(good, here))


@door
def heads_init_param(good, here, payload):
    command(
        "asr_train", *head_training(good, here), f"--init_param={payload.file()}:a:b"
    )


@door
def heads_resume(good, here, payload):
    (here / "out").mkdir()
    (here / "out" / "checkpoint.pth").write_bytes(payload.content())
    command("asr_train", *head_training(good, here))


@door
def heads_upstream(good, here, payload):
    source = f"s3prl:hubert_custom:{payload.text()}"
    command("asr_train", *head_training(good, here, frontend_conf={"upstream": source}))


@door
def heads_stock_s3prl_frontend(good, here, payload):
    conf = {"upstream": "hubert_custom", "path_or_url": payload.text()}
    command(
        "asr_train",
        *head_training(
            good, here, frontend="s3prl", frontend_conf={"frontend_conf": conf}
        ),
    )


@door
def heads_stored_features(good, here, payload):
    """Features of others: ``kaldi_ark``, which kaldiio reads."""
    ark = here / "feats.ark"
    content = payload.content()
    ark.write_bytes((b"PKL" if payload.form == "bare pickle" else b"") + content)
    value = payload.pipe if payload.form == "shell pipe" else f"{ark}:0"
    (here / "feats.scp").write_text(
        "".join(f"u{number} {value}\n" for number in range(4))
    )
    command(
        "asr_train",
        *head_training(
            good,
            here,
            speech=f"{here}/feats.scp,speech,kaldi_ark",
            frontend=None,
            frontend_conf={},
            input_size=16,
        ),
    )


@door
def decoding_weights(good, here, payload):
    command(
        "asr_inference",
        f"--asr_train_config={good.root / 'head' / 'config.yaml'}",
        f"--asr_model_file={payload.file()}",
        f"--data_path_and_name_and_type={good.data}/wav.scp,speech,sound",
        *(f"--output_dir={here / 'out'}", "--ngpu=0", "--num_workers=0"),
    )


@door
def decoding_config(good, here, payload):
    config = yaml.safe_load((good.root / "head" / "config.yaml").read_text())
    conf = {"upstream": "hubert_custom", "path_or_url": payload.text()}
    config |= {"frontend": "s3prl", "frontend_conf": {"frontend_conf": conf}}
    text = yaml.safe_dump(config)
    text += payload.document() if payload.form == "YAML tag" else ""
    (here / "config.yaml").write_text(text)
    command(
        "asr_inference",
        f"--asr_train_config={here / 'config.yaml'}",
        f"--asr_model_file={good.root / 'head' / 'model.pth'}",
        f"--data_path_and_name_and_type={good.data}/wav.scp,speech,sound",
        *(f"--output_dir={here / 'out'}", "--ngpu=0", "--num_workers=0"),
    )
