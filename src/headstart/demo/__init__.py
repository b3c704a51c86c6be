"""The embedded default: rendered letters and digits, and a small network pretrained on them."""
