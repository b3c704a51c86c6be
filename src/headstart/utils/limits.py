"""Limits for values in the config and in files from elsewhere."""

MAX_SIDE = 4096  # pixels a side of network input: four times the largest in torchvision and timm (1024)
