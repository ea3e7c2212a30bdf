"""The folder on disk: what it takes, what goes first, who may read it, and that nothing is ever there in part."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.capture.folder import CaptureFolder, Segment, on_disk, segment_name, segments

Folder = Callable[..., CaptureFolder]


def segment(at: int = 0, *, size: int = 100, age_days: float = 0.0, kind: str = "flagged") -> Segment:
    """One of 8 + 4 KiB on disk; those of a higher `at` are newer."""
    name = segment_name()
    if age_days or at:
        time = datetime.now(UTC) - timedelta(days=age_days) + timedelta(microseconds=at)
        name = f"{time:%Y%m%dT%H%M%S.%fZ}-{at:08x}"
    return Segment("cifar10@1", kind, name, {f"{name}-00.png": b"x" * size, "index.parquet": b"rows"})


def names(root: Path) -> list[str]:
    return sorted(path.name for path in segments(root))


def du(root: Path) -> int:
    """Blocks of 4 KiB of every segment, as `du` counts them, files and folders."""
    listed = subprocess.run(["du", "-ak", root], capture_output=True, text=True, check=True).stdout
    paths = [Path(line.partition("\t")[2]) for line in listed.splitlines()]
    inside = [path for path in paths if len(path.relative_to(root).parts) >= 3]
    return sum(4096 if path.is_dir() else -(-path.stat().st_size // 4096) * 4096 for path in inside)


def test_sizes_are_counted_in_blocks() -> None:
    assert [on_disk(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert segment(size=5000).bytes == 4096 + 8192 + 4096


def test_a_segment_lies_in_its_place_for_its_owner_alone(root: Path, folder: Folder) -> None:
    added, before = segment(), os.umask(0)
    try:
        folder().add(added)
    finally:
        os.umask(before)
    place = root / "cifar10@1" / "flagged" / added.name
    assert {path.name: path.read_bytes() for path in place.iterdir()} == added.files
    modes = {path: path.stat().st_mode & 0o777 for path in (root, *root.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_the_oldest_make_room_and_the_quota_is_never_exceeded(root: Path, folder: Folder) -> None:
    mine = folder(max_bytes=5 * segment().bytes)
    added = [segment(at, kind=("control", "flagged")[at % 2]) for at in range(1, 9)]
    for at, one in enumerate(added):
        mine.add(one)
        assert names(root) == [each.name for each in added[max(0, at - 4) : at + 1]]
        assert mine.bytes == du(root) == min(at + 1, 5) * one.bytes
    larger = segment(9, size=12_000)  # 4 + 12 + 4 KiB: two of 12 must go
    mine.add(larger)
    assert names(root) == [each.name for each in added[-3:]] + [larger.name]


def test_another_process_sees_what_is_there_and_a_smaller_quota_is_kept_at_the_start(
    root: Path, folder: Folder
) -> None:
    added = [segment(at) for at in range(1, 7)]
    for one in added:
        folder().add(one)
    later = folder(max_bytes=2 * segment().bytes)
    later.tidy()
    assert names(root) == [each.name for each in added[-2:]]
    assert later.bytes == du(root)


def test_what_is_too_old_goes_though_there_is_room(root: Path, folder: Folder) -> None:
    old, young = segment(1, age_days=2.1), segment(2, age_days=1.9)
    folder().add(old)
    folder().add(young)
    folder(days=2).tidy()
    assert names(root) == [young.name]


def test_what_is_not_ours_is_left_alone(root: Path, folder: Folder) -> None:
    folder().add(segment())
    for path in ("notes.txt", "cifar10@1/flagged/picked/0.png", "cifar10@1/mine/0.png"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(b"x" * 10**6)
    (root / "cifar10@1" / "flagged" / segment_name()).symlink_to(root / "cifar10@1" / "mine")
    mine = folder(max_bytes=2**20, days=1e-9)
    mine.tidy()
    assert names(root) == []
    assert mine.bytes == 0
    assert sum(path.is_file() for path in root.rglob("*") if path.name != ".lock") == 3
    assert (root / "cifar10@1" / "mine" / "0.png").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_can_not_be_is_an_error_of_the_system(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    mine = CaptureFolder(tmp_path / place, max_bytes=2**20, max_age=timedelta(days=1))
    for work in (mine.tidy, lambda: mine.add(segment())):
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            work()


KILLED = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path
from service.capture.folder import BLOCK_BYTES, CaptureFolder, Segment, segments

root = Path(sys.argv[1])
files = {"0.png": b"a" * 100, "1.png": b"b" * 5000, "index.parquet": b"c" * 200}
QUOTA = 3 * Segment("m@1", "flagged", "", files).bytes

def work():
    folder = CaptureFolder(root, max_bytes=QUOTA, max_age=timedelta(days=1))
    folder.tidy()
    for at in range(2):
        folder.add(Segment("m@1", ("flagged", "control")[at], next(names), files))

def numbered():
    at = 0
    while True:
        at += 1
        yield f"20990101T000000.{os.getpid() % 10**6:06}Z-{at:08x}"

def killed_at(step):
    '''Work in a process that ends before its step-th call to the system; return whether it came so far.'''
    child = os.fork()
    if child == 0:
        left = step
        def count(event, _):
            nonlocal left
            if event in WATCHED:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree", "fcntl.flock"}
names, step, seen = numbered(), 0, 0
while True:
    step += 1
    if not killed_at(step):
        break
    found = list(segments(root)) if root.exists() else []
    for path in found:
        assert {file.name: file.read_bytes() for file in path.iterdir()} == files, (step, path)
    assert len({path.name for path in found}) == len(found), step
    total = len(found) * Segment("m@1", "flagged", "", files).bytes
    assert total <= QUOTA, (step, total)
    seen = max(seen, len(found))
mine = CaptureFolder(root, max_bytes=QUOTA, max_age=timedelta(days=1))
mine.tidy()
left = sorted(path.relative_to(root).parts[0] for path in root.rglob("*"))
assert set(left) <= {".lock", "m@1"}, left
assert mine.bytes == QUOTA, mine.bytes
print(step, seen)
"""


def test_a_process_killed_before_any_of_its_calls_leaves_whole_segments(tmp_path: Path) -> None:
    """What it had begun is gone with the next one's first step; nothing is above the quota at any time."""
    command = [sys.executable, "-c", KILLED, tmp_path / "captured"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    steps, seen = map(int, finished.stdout.split())
    assert steps > 50  # two writes, two removals, and three looks at what is there
    assert seen == 3


MANY = """
import sys
from datetime import timedelta
from pathlib import Path
from service.capture.folder import CaptureFolder, Segment, segment_name

folder = CaptureFolder(Path(sys.argv[1]), max_bytes=int(sys.argv[2]), max_age=timedelta(days=1))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    folder.add(Segment("m@1", "flagged", segment_name(), {"0.png": b"a" * 100, "index.parquet": b"c"}))
    assert folder.bytes <= int(sys.argv[2])
"""


def test_processes_share_one_quota(root: Path, folder: Folder) -> None:
    quota = 20 * segment().bytes
    command = [sys.executable, "-c", MANY, str(root), str(quota)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
        assert (one.wait(60), other.wait(60)) == (0, 0)
    mine = folder(max_bytes=quota)
    mine.tidy()
    assert mine.bytes == du(root) == quota
    assert [sorted(file.name for file in path.iterdir()) for path in segments(root)] == [
        ["0.png", "index.parquet"]
    ] * 20
