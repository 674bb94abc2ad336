"""Public corpora as they are distributed: their names and folders."""

#: Corpus name to the variable of ``db.sh`` that says where it is.
CORPORA = {
    "commonvoice": "COMMONVOICE",
    "thchs30": "THCHS30",
    "aishell1": "AISHELL1",
    "aishell3": "AISHELL3",
    "fleurs": "FLEURS",
    "mhubert147": "MHUBERT147_MANIFEST",
}
#: What may be joined with them: the embedded corpus, and anybody's own speech.
OWN = ("mini", "manifest")
#: Variable of ``db.sh``: the audio of mHuBERT-147's manifests.
MHUBERT147_AUDIO = "MHUBERT147_AUDIO"
#: Below the data folder: what each corpus gives to pretraining.
PRETRAIN_DIR = "pretrain"
#: Below the data folder: each corpus' own train, dev and test set for evaluation.
EVAL_DIR = "eval"
