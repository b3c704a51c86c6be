"""Bounds that the control panel and the files of strangers are held to."""

MAX_SIDE = 4096  # pixels of a square that a network sees: eight times what the largest of torchvision and timm see
