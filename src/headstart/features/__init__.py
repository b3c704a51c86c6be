"""A frozen backbone runs once: its outputs are kept on disk by content, and heads are trained on them."""
