"""Entropy, mutual information, and how well units and phones agree."""

import numpy as np


def entropy(counts: np.ndarray) -> float:
    """Entropy of a table of counts in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def mutual_information(joint: np.ndarray) -> float:
    """Mutual information in nats of the two sides of a table of joint counts."""
    return entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)


def phone_scores(joint: np.ndarray) -> dict[str, float]:
    """Agreement of phones and units, from frames counted as ``[phones, K]``.

    As in HuBERT (arXiv:2106.07447, section IV-C): phone purity is the share of frames
    whose phone is the likeliest of their unit, cluster purity the share whose unit is
    the likeliest of their phone, and PNMI is I(phone; unit) / H(phone).
    """
    frames = joint.sum()
    phone_entropy = entropy(joint.sum(1))
    information = mutual_information(joint)
    return {
        "pnmi": information / phone_entropy if phone_entropy else 0.0,
        "phone_purity": float(joint.max(0).sum() / frames),
        "cluster_purity": float(joint.max(1).sum() / frames),
        "phone_majority": float(joint.sum(1).max() / frames),
    }
