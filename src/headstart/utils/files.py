"""Files that are written as a whole or not at all, also where the process is killed or the disk is full."""

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
from typing import TYPE_CHECKING, Any

from headstart.utils.errors import DiskError, has_no_room, no_room

if TYPE_CHECKING:  # most of what writes files starts without waiting for torch
    from torch import Tensor

HANDED = ("/dev/fd/", "/proc/self/fd/")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes begins so
MOST_BYTES = 64 * 2**20  # of a text: names and figures of 20,000 classes take 5 MB
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def write_atomically(path: Path, write: Callable[[Path], object], *, size: int = 0) -> None:
    """Writes a file beside its place and moves it there, so that a reader sees all of it or none.

    The file is on the disk before it takes the place of a former one, so that not even a power cut leaves half of it.

    Args:
        path: where the file is to be; its folder is made.
        write: called with a temporary path in the same folder.
        size: bytes that the file will have, as far as they are known, for the message.

    Raises:
        DiskError: there is no room for it; what was there before is whole.
        OSError: it cannot be written for another reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            _to_disk(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
            temporary.replace(path)
            _to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except Exception as error:
        if isinstance(error, DiskError) or not has_no_room(error):
            raise
        raise DiskError(no_room(path, size)) from error


def _prefix(path: Path) -> str:
    return f".{path.name}."


def _to_disk(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows has no such call for folders
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such call for folders
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def regular(path: Path) -> Path:
    """The path itself, which leads to a regular file, through links or not.

    A pipe that this process was handed open, such as a shell's <(command), counts as one: whoever opened it writes.

    Raises:
        OSError: it does not: reading a pipe, a socket or a device may never end.
    """
    mode = path.stat().st_mode
    handed = stat.S_ISFIFO(mode) and str(path).startswith(HANDED)
    if not (stat.S_ISREG(mode) or handed):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
    return path


def remove_unfinished(path: Path) -> None:
    """Removes what a killed process had begun to write for a file that this process alone writes."""
    for left in path.parent.glob(f"{_prefix(path)}*"):
        left.unlink(missing_ok=True)


# --- reading -------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A text file of headstart's own: UTF-8, where names of files that are not UTF-8 keep their bytes.

    Raises:
        OSError: it is missing, no regular file, or larger than anything that headstart writes.
    """
    size = regular(path).stat().st_size
    if size > MOST_BYTES:
        raise OSError(errno.EINVAL, f"{size:,} bytes, more than headstart writes", str(path))
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def read_json(path: Path) -> Any:
    """The values of a JSON file of headstart's own.

    Raises:
        OSError: see `read_text`.
        ValueError: it is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


# --- kinds of files ------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8; names of files that are not UTF-8 keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data), size=len(data))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically; NaN and infinity, which JSON has not, become null."""
    write_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically."""
    from safetensors.torch import save_file

    size = sum(tensor.nbytes for tensor in tensors.values())
    about = dict(metadata) if metadata else None
    write_atomically(path, lambda temporary: save_file(dict(tensors), temporary, about), size=size)


def plain(value: Any) -> Any:
    """Plain values as JSON has them: NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(rows: Iterable[Sequence[Any]], *, quoted: bool = True) -> str:
    """Rows as a csv.

    Args:
        rows: of plain values.
        quoted: see `csv_cell`; False leaves texts as they are.
    """
    lines = []
    for row in rows:
        line = io.StringIO()
        # Its usual end of a row is "\r\n", and with that it puts a name that has a "\r" into quotes.
        csv.writer(line).writerow([csv_cell(cell) for cell in row] if quoted else row)
        lines.append(line.getvalue().removesuffix("\r\n"))
    return "".join(f"{line}\n" for line in lines)


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet takes for a text where it is one; the name of a file may look like a formula.

    An apostrophe in front says so to a spreadsheet (https://owasp.org/www-community/attacks/CSV_Injection);
    `csv_value` takes it away again.
    """
    formula = isinstance(value, str) and value.lstrip("'").startswith(FORMULA) and not _is_number(value)
    return f"'{value}" if formula else value


def csv_value(cell: str) -> str:
    """The text that `csv_cell` has made a cell of."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
