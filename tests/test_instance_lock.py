"""One orchestrator per data folder, and who that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.instance_lock import InstanceLock, holder_pid, instance_id

HOLD = """
import sys
from pathlib import Path
from orchestrator.instance_lock import InstanceLock
lock = InstanceLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    with subprocess.Popen((sys.executable, "-c", HOLD, str(data)), stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=rf"{data} is in use by .*process {holder.pid}"):
            InstanceLock(data)
        holder.kill()
        holder.wait(10)
        lock = InstanceLock(data)
        assert holder_pid(data) == os.getpid()
        lock.release()
        lock.release()


def test_lock_is_not_inherited(tmp_path: Path) -> None:
    """An engine that outlives us must not keep the folder."""
    lock = InstanceLock(tmp_path)
    with subprocess.Popen(("/bin/cat",), stdin=subprocess.PIPE) as child:
        lock.release()
        InstanceLock(tmp_path).release()
        assert child.poll() is None
        child.kill()


def test_folder_that_cant_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"server\.data_dir: .*Not a directory"):
        InstanceLock(tmp_path / "file" / "data")


def test_identity_stays(tmp_path: Path) -> None:
    first = instance_id(tmp_path)
    assert len(first) == 16
    assert instance_id(tmp_path) == first
    (tmp_path / "instance").write_text("")  # cut off while it was written: no engine bears it yet
    assert len(instance_id(tmp_path)) == 16
