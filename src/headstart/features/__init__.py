"""A backbone runs once while it is frozen: its outputs are kept on disk by content, and heads are trained on them."""
