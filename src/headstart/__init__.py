"""Transfer learning for image classification: a pretrained backbone, a new head, your images."""

__version__ = "0.1.0"
