"""Scores from one forward pass. Higher means more in-distribution, except where a name says energy alone."""

from model_store.scores.gaussian import EnergyMahalanobis, Mahalanobis, RelativeMahalanobis
from model_store.scores.logits import (
    Gen,
    MaxLogit,
    MaxSoftmax,
    NegativeEnergy,
    energy,
    gen,
    max_logit,
    max_softmax,
    negative_energy,
)
from model_store.scores.nearest import Knn
from model_store.scores.reshaped import React, Scale
from model_store.scores.restore import restore_score, statistic_shapes
from model_store.scores.score import Head, OnePassScore
from model_store.scores.virtual_logit import Vim

__all__ = [
    "EnergyMahalanobis",
    "Gen",
    "Head",
    "Knn",
    "Mahalanobis",
    "MaxLogit",
    "MaxSoftmax",
    "NegativeEnergy",
    "OnePassScore",
    "React",
    "RelativeMahalanobis",
    "Scale",
    "Vim",
    "energy",
    "gen",
    "max_logit",
    "max_softmax",
    "negative_energy",
    "restore_score",
    "statistic_shapes",
]
