"""Atomic writing of files, and reading and writing of text, JSON, csv and safetensors."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headstart.utils.errors import DiskError, disk_full_message, is_disk_full

if TYPE_CHECKING:  # most callers do not need torch, which is slow to import
    from torch import Tensor

INHERITED_PIPES = ("/dev/fd/", "/proc/self/fd/")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet reads cells that begin with these as formulas
MAX_TEXT_BYTES = 64 * 2**20  # maximum size of a text file; names and metrics of 20,000 classes take 5 MB
AnyPath = TypeVar("AnyPath", bound=str | Path)
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def write_atomically(path: Path, write: Callable[[Path], object], *, size: int = 0) -> None:
    """Write a file atomically: write a temporary file in the same folder, then move it to its path.

    Readers see the old file or the whole new one, even after the process is killed. The temporary file is synced to
    disk (fsync) before it replaces the old one, so that a power cut does not leave half a file.

    Args:
        path: path of the file; its folder is created if necessary.
        write: writes the file, given a temporary path in the same folder.
        size: size of the file in bytes for the message, 0 if unknown.

    Raises:
        DiskError: the disk is full or a limit is reached; an existing file is unchanged.
        OSError: the file cannot be written for another reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp and safetensors make files that only their owner can read
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except Exception as error:
        if isinstance(error, DiskError) or not is_disk_full(error):
            raise
        raise DiskError(disk_full_message(path, size)) from error


def _prefix(path: Path) -> str:
    return f".{path.name}."


def _sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot sync folders
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # this file system cannot sync folders
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def regular_file(path: AnyPath) -> AnyPath:
    """Return the path if it is a regular file or a link to one, and raise an error otherwise.

    Reading a pipe, a socket or a device may never end. A pipe that this process inherited open, such as a shell's
    <(command), is accepted, because its other end has a writer.

    Raises:
        OSError: the path is not a regular file, or does not exist.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 (a sixth of the time of Path.stat, which counts for 100,000 images)
    inherited = stat.S_ISFIFO(mode) and str(path).startswith(INHERITED_PIPES)
    if not (stat.S_ISREG(mode) or inherited):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
    return path


def read_regular(path: str | Path) -> bytes:
    """Read a regular file whole.

    Raises:
        OSError: see `regular_file`.
    """
    with open(regular_file(path), "rb", buffering=0) as file:  # noqa: PTH123 (faster than Path.open, too)
        return file.readall()


def remove_unfinished(path: Path) -> None:
    """Remove temporary files that a killed process left next to a path.

    Call it only for a path that no other process writes.
    """
    for unfinished in path.parent.glob(f"{_prefix(path)}*"):
        unfinished.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read a text file that headstart wrote, as UTF-8; bytes that are not UTF-8 become surrogate escapes.

    File names may contain such bytes.

    Raises:
        OSError: the file is missing, not a regular file, or larger than any text that headstart writes (64 MiB).
    """
    size = regular_file(path).stat().st_size
    if size > MAX_TEXT_BYTES:
        raise OSError(errno.EINVAL, f"{size:,} bytes, more than headstart writes", str(path))
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def read_json(path: Path) -> Any:
    """Read the values of a JSON file that headstart wrote.

    Raises:
        OSError: see `read_text`.
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; surrogate escapes become the bytes that they stand for."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file atomically; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data), size=len(data))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; NaN and infinity, which JSON does not support, become null."""
    write_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with optional metadata."""
    from safetensors.torch import save_file

    size = sum(tensor.nbytes for tensor in tensors.values())
    strings = dict(metadata) if metadata else None
    write_atomically(path, lambda temporary: save_file(dict(tensors), temporary, strings), size=size)


def plain(value: Any) -> Any:
    """Convert values for JSON: keys of mappings become strings, NaN and infinity become None.

    Lists are returned unchanged.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Iterable[Sequence[Any]], *, quoted: bool = True) -> str:
    """Format rows as csv text.

    Args:
        rows: rows of plain values.
        quoted: whether to escape formulas; see `csv_cell`.
    """
    lines = []
    for row in rows:
        line = io.StringIO()
        # The default line terminator "\r\n" makes the writer quote names that contain "\r".
        csv.writer(line).writerow([csv_cell(cell) for cell in row] if quoted else row)
        lines.append(line.getvalue().removesuffix("\r\n"))
    return "".join(f"{line}\n" for line in lines)


def csv_cell(value: Any) -> Any:
    """Escape a text that a spreadsheet would take for a formula, as the name of a file may be.

    An apostrophe in front marks a cell as text (https://owasp.org/www-community/attacks/CSV_Injection). `csv_value`
    removes it again. Other values and numbers are returned unchanged.
    """
    formula = isinstance(value, str) and value.lstrip("'").startswith(FORMULA_STARTS) and not _is_number(value)
    return f"'{value}" if formula else value


def csv_value(cell: str) -> str:
    """Return the text that `csv_cell` escaped."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA_STARTS) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
