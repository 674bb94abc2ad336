"""Files as an attacker would make them; all they can do is to touch a mark.

A form is one way in which others' data became code or commands somewhere: pickles,
texts that are evaluated, URLs, YAML's Python tags, modules named by a config, shell
pipes, members that leave their archive, files elsewhere.
"""

import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
import yaml

FORMS = (
    "pickle in torch's zip",
    "pickle of torch's legacy format",
    "bare pickle",
    "pickle in an npz",
    "text for eval",
    "URL",
    "YAML tag",
    "remote code",
    "shell pipe",
    "zip that escapes",
    "file elsewhere",
)


class Touch:
    """Unpickling it touches a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mknod, (self.mark,)


class Payload:
    """One form; every reader gets it as what it expects: a file, a text, a mapping.

    Args:
        form: One of :data:`FORMS`.
        here: An empty directory for the files that a text names.
        mark: The file that must not appear.
    """

    url = "http://127.0.0.1:9/model.pt"

    def __init__(self, form, here, mark):
        self.form, self.here, self.mark = form, Path(here), Path(mark)
        self.elsewhere = self.here / "elsewhere" / "secret.npz"
        self.elsewhere.parent.mkdir(parents=True)
        np.savez(self.elsewhere, mean=np.zeros(2))
        self.code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
        self.pipe = f"touch {mark} |"
        self.tag = f"!!python/object/apply:os.mknod [{mark}]"

    @property
    def is_pickle(self):
        return "pickle" in self.form

    def content(self):
        """Bytes of a file of weights, features or numbers."""
        buffer = io.BytesIO()
        if self.form == FORMS[0]:
            torch.save({"model": Touch(self.mark)}, buffer)
        elif self.form == FORMS[1]:
            value = {"model": Touch(self.mark)}
            torch.save(value, buffer, _use_new_zipfile_serialization=False)
        elif self.form == FORMS[2]:
            pickle.dump(Touch(self.mark), buffer)
        elif self.form == FORMS[3]:
            array = np.array([Touch(self.mark)], dtype=object)
            names = ("centroids", "metadata", "mean", "run", "progress", "counts")
            np.savez(buffer, **dict.fromkeys(names, array))
        elif self.form == "text for eval":
            torch.save(self.s3prl_checkpoint(), buffer)
        elif self.form == "URL":
            torch.save({"model": self.url, "ckpt": self.url}, buffer)
        elif self.form == "zip that escapes":
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(f"../{self.mark.name}", b"x")
                archive.writestr(".complete", b"")
        else:
            buffer.write(self.document().encode())
        return buffer.getvalue()

    def s3prl_checkpoint(self):
        """Plain values, of which S3PRL evaluates one."""
        model = {
            "conv_feature_layers": f"{self.code} or [(8, 10, 5)]",
            "label_rate": 50,
        }
        return {
            # HuBERT's keys, then WavLM's.
            "task_cfg": {"normalize": True, "sample_rate": 16000},
            "model_cfg": model,
            "model_weight": {},
            "dictionaries_symbols": [["a"]],
            "cfg": model,
            "model": {},
        }

    def document(self):
        """A YAML text that is JSON, too, where the form allows it."""
        if self.form == "YAML tag":
            return f"x: {self.tag}\n"
        return json.dumps(self.mapping()) + "\n"

    def mapping(self):
        """Keys that somebody's loader acts upon."""
        module = self.here / "evil.py"
        if not module.exists():
            module.write_text(
                f"import pathlib\npathlib.Path({str(self.mark)!r}).touch()\n"
            )
        return {
            "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
            "trust_remote_code": True,
            "trust_s3prl_files": True,
            "_target_": "evil.Model",
            "conv_feature_layers": self.code,
            "path_or_url": self.text(),
        }

    def text(self):
        """What stands where the name or path of a checkpoint is expected."""
        if self.is_pickle or self.form in ("text for eval", "zip that escapes"):
            suffix = {"pickle in an npz": "npz", "zip that escapes": "zip"}
            return str(self.file(suffix.get(self.form, "pt")))
        if self.form == "remote code":
            directory = self.here / "remote"
            directory.mkdir(exist_ok=True)
            config = {"model_type": "hubert", "auto_map": {"AutoModel": "evil.Model"}}
            (directory / "config.json").write_text(json.dumps(config))
            (directory / "evil.py").write_text(self.code + "\n")
            return str(directory)
        return {
            "URL": self.url,
            "YAML tag": self.tag,
            "shell pipe": self.pipe,
            "file elsewhere": str(self.elsewhere),
        }[self.form]

    def file(self, suffix="pt"):
        """The path of a file with :meth:`content`."""
        path = self.here / f"evil.{suffix}"
        path.write_bytes(self.content())
        return path

    def in_config(self, config):
        """The YAML of a config that asks an ESPnet model for the payload, by key."""
        name, runs_in_s3prl = self.text(), self.form in ("URL", "text for eval")
        section, key, value = "encoder_conf", "base", name
        if runs_in_s3prl:
            conf = {"s3prl": f"s3prl:hubert_custom:{name}"}
            section, key, value = "frontend_conf", "upstream_conf", conf
        elif self.form in ("shell pipe", "file elsewhere", "pickle in an npz"):
            section, key = "normalize_conf", "stats_file"
        changed = {**config, section: {**(config.get(section) or {}), key: value}}
        if section == "normalize_conf":
            changed["normalize"] = "global_mvn"
        if runs_in_s3prl and config.get("frontend") != "lamer_upstream":
            changed["frontend"] = "s3prl"
            changed["frontend_conf"] = {
                "frontend_conf": {"upstream": "hubert_custom", "path_or_url": name}
            }
        text = yaml.safe_dump(changed)
        return text + (f"x: {self.tag}\n" if self.form == "YAML tag" else "")


class Watch:
    """Touch a payload's mark when the process reaches for what it must not.

    Python tells audit hooks of every connection and every opened file, whoever asks.
    """

    def __init__(self):
        self.payload = None
        sys.addaudithook(self._hook)

    def watch(self, payload, files):
        """Watch connections; with ``files`` also the file elsewhere."""
        self.payload, self.files = payload, files

    def _hook(self, event, args):
        payload = self.payload
        if payload is None:
            return
        reached = event in ("socket.connect", "socket.getaddrinfo")
        if event == "open" and self.files and args[0] == str(payload.elsewhere):
            reached = True
        if reached:
            self.payload = None  # touching opens a file, too
            payload.mark.touch()
