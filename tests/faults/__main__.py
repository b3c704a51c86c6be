"""Plants each fault in a copy of the project and runs the tests that are to catch it: `python -m tests.faults`.

python -m tests.faults                  # all of them
python -m tests.faults checkpoint       # those with the word in their names
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .faults import FAULTS, Fault

ROOT = Path(__file__).parent.parent.parent
SOURCE = Path("src", "headstart")
FAILED = 1  # pytest's exit status when tests ran and some failed


def copy_project(to: Path) -> None:
    """Copies what git knows of, so that planting touches nothing here; data beside the checkout stay beside it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    subprocess.run(["git", "init", "--quiet"], cwd=to, check=True)  # a run records the state of its checkout
    subprocess.run(["git", "add", "--all"], cwd=to, check=True)
    identity = ("-c", "user.name=faults", "-c", "user.email=faults@localhost")
    subprocess.run(["git", *identity, "commit", "--quiet", "-m", "as it is"], cwd=to, check=True)
    if (ROOT.parent / "shared").is_dir():
        (to.parent / "shared").symlink_to(ROOT.parent / "shared")


def first_failure(project: Path, fault: Fault) -> str | None:
    """The first test that fails with the fault planted; None if none does.

    Raises:
        ValueError: the fault cannot be planted, or the tests cannot be run.
    """
    path = project / SOURCE / fault.file
    right = path.read_text(encoding="utf-8")
    if right.count(fault.right) != 1:
        raise ValueError(f"{fault.name}: {fault.file} holds its code {right.count(fault.right)} times, not once")
    path.write_text(right.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        tests = [str(Path("tests", name)) for name in fault.tests]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-n", "0", "--tb=no", "-rfE", "-p", "no:cacheprovider", *tests],
            cwd=project, check=False, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(project / "src")},
        )  # fmt: skip
    finally:
        path.write_text(right, encoding="utf-8")
    if done.returncode not in (0, FAILED):
        raise ValueError(f"{fault.name}: pytest ended with exit status {done.returncode}\n{done.stdout}{done.stderr}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == FAILED and failed is None:
        raise ValueError(f"{fault.name}: no test failed, but something else\n{done.stdout}")
    return failed[1] if failed else None


def main() -> int:
    """Plants the faults one after the other; the exit status is the number of those that no test caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only faults with one of these words in their names")
    words = parser.parse_args().words
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        copy_project(project)
        for fault in chosen:
            test = first_failure(project, fault)
            missed += test is None
            print(f"{'MISSED' if test is None else 'caught'}  {fault.name}  ({test or fault.file})", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults were caught")
    return missed


if __name__ == "__main__":
    sys.exit(main())
