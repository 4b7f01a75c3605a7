"""Locks of devices and of run folders."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from worker import locks
from worker.locks import held_folder, held_lock, holders, unheld_folder


def test_one_process_has_a_lock_and_the_next_one_is_told_which(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "gpu.lock"
    with held_lock(path) as lock:
        assert lock is not None
        with subprocess.Popen(["sleep", "600"], pass_fds=[lock]) as child:
            with held_lock(path) as second:
                assert second is None
            assert f"process {child.pid} (sleep 600)" in holders(path)
            child.kill()


def test_a_lock_lasts_as_long_as_a_child_that_inherited_it(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    with held_lock(path) as lock:
        assert lock is not None
        child = subprocess.Popen(["sleep", "600"], pass_fds=[lock])
    with held_lock(path) as second:
        assert second is None
    child.kill()
    child.wait()
    with held_lock(path) as third:
        assert third is not None


def test_a_file_that_was_left_or_belongs_to_another_user_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    path.touch(mode=0o444)
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)
    with held_lock(path) as lock:
        assert lock is not None


def test_a_new_file_can_be_locked_by_every_user(tmp_path: Path) -> None:
    with held_lock(tmp_path / "gpu.lock"):
        mode = (tmp_path / "gpu.lock").stat().st_mode
    assert stat.S_IMODE(mode) & 0o444 == 0o444


def test_a_folder_in_use_is_no_dead_one(tmp_path: Path) -> None:
    with held_folder(tmp_path / "job" / "e0001") as lock:
        assert lock > 0
        with unheld_folder(tmp_path / "job" / "e0001") as is_dead:
            assert not is_dead
        with pytest.raises(BlockingIOError, match="in use"), held_folder(tmp_path / "job" / "e0001"):
            pass
    with unheld_folder(tmp_path / "job" / "e0001") as is_dead:
        assert is_dead


def test_a_device_is_locked_where_every_user_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(locks, "_SHARED", (tmp_path / "missing", private, shared))
    assert locks.device_lock_path("GPU-1") == shared / "luthier-GPU-1.lock"
