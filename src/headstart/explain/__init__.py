"""Where in an image a model sees a class."""

from headstart.explain.heatmaps import Explainer, Heatmap, explain, overlay

__all__ = ["Explainer", "Heatmap", "explain", "overlay"]
