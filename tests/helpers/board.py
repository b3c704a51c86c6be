"""The real TensorBoard, for a folder."""

from __future__ import annotations

from pathlib import Path

from tensorboard.program import TensorBoard


def start_board(folder: Path) -> str:
    """Starts a TensorBoard in this process that listens on this machine alone, and returns its address."""
    board = TensorBoard()
    board.configure(argv=[None, "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"])
    return str(board.launch())
