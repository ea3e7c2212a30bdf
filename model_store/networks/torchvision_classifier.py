"""Any classifier of torchvision that ends in a linear layer."""

from torchvision import models

from model_store.networks.cut_classifier import CutClassifier


def torchvision_classifier(name: str, num_classes: int) -> CutClassifier:
    """Build one, randomly initialised.

    Raises:
        ValueError: torchvision has no such classifier, or it does not end in a linear layer.
    """
    if name not in models.list_models(models):
        raise ValueError(f"torchvision.models has no classifier {name!r}")
    body = models.get_model(name, weights=None, num_classes=num_classes)
    path, _ = list(body.named_modules())[-1]
    return CutClassifier(name, body, path)
