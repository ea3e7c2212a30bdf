"""Any classifier of timm that ends in a linear layer."""

import timm

from model_store.networks.cut_classifier import CutClassifier


def timm_classifier(name: str, num_classes: int) -> CutClassifier:
    """Build one, randomly initialised; nothing is downloaded.

    Raises:
        ValueError: timm has no such classifier, or it does not end in one linear layer.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no classifier {name!r}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as err:  # of a tag that this version of timm does not know, as in resnet18.nosuch
        raise ValueError(f"timm has no classifier {name!r}: {err}") from err
    path = None if config is None else config.classifier
    if not isinstance(path, str):  # distilled transformers have two, encoders none
        raise ValueError(f"{name} ends in the layers {path}; only networks that end in one Linear have an energy here")
    return CutClassifier(name, timm.create_model(name, pretrained=False, num_classes=num_classes), path)
