"""GPUs of one machine are shared out: each process gets its own. The GPUs here are names, no hardware is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT
from spillover import devices

LAUNCHER = ROOT / "workflow/scripts/on_gpu.py"
PATIENCE = 300  # seconds, for what takes one on an idle machine
TELL = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"


@pytest.fixture
def launch(tmp_path):
    """Start a program through the launcher; it prints its GPUs and runs until its input is closed."""
    started = []

    def start(gpus: int | str | None = 1, visible: str | None = "0,1,2,3", code: str = TELL) -> subprocess.Popen:
        environment = os.environ | {"SPILLOVER_GPU_LOCKS": str(tmp_path), "PATH": "/usr/bin:/bin"}
        environment |= {} if gpus is None else {"GPUS": str(gpus)}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        command = [sys.executable, LAUNCHER, sys.executable, "-c", code]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def gpus_of(process: subprocess.Popen) -> set[str]:
    return set(process.stdout.readline().strip().split(",")) - {""}


def finish(process: subprocess.Popen) -> int:
    process.stdin.close()
    return process.wait(timeout=PATIENCE)


def test_every_process_gets_a_gpu_of_its_own(launch):
    given = [gpus_of(launch()) for _ in range(4)]
    assert all(len(gpus) == 1 for gpus in given)
    assert set.union(*given) == {"0", "1", "2", "3"}


def test_only_the_gpus_that_this_process_may_use_are_given(launch):
    assert gpus_of(launch(visible="2,GPU-5f1c")) | gpus_of(launch(visible="2,GPU-5f1c")) == {"2", "GPU-5f1c"}


def test_a_process_gets_as_many_as_it_asks_for_and_one_by_default(launch):
    three, one = gpus_of(launch(3)), gpus_of(launch(None))
    assert len(three) == 3 and len(one) == 1 and not three & one


def test_without_a_gpu_asked_for_none_is_visible_or_locked(launch):
    assert gpus_of(launch(0, visible="0")) == set()
    assert gpus_of(launch(1, visible="0")) == {"0"}


def test_a_process_waits_until_one_is_free_and_says_so(launch):
    first = launch(visible="7")
    assert gpus_of(first) == {"7"}
    second = launch(visible="7")
    assert "Waiting for 1 of the GPUs 7: 0 free" in second.stderr.readline()
    assert second.poll() is None
    finish(first)
    assert gpus_of(second) == {"7"}


def test_a_killed_process_gives_its_gpu_back(launch):
    first = launch(visible="7")
    assert gpus_of(first) == {"7"}
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert gpus_of(launch(visible="7")) == {"7"}


def test_a_job_that_waits_for_its_last_gpu_holds_no_other(launch):
    first = launch(visible="0,1")
    held = gpus_of(first)
    both = launch(2, visible="0,1")
    assert "1 free" in both.stderr.readline()
    other = launch(visible="0,1")
    assert gpus_of(other) == {"0", "1"} - held
    finish(first)
    finish(other)
    assert gpus_of(both) == {"0", "1"}


def test_the_program_keeps_its_exit_status_and_its_process_id(launch):
    process = launch(code="import os, sys; print(os.getpid()); sys.exit(3)")
    assert int(process.stdout.readline()) == process.pid
    assert process.wait(timeout=PATIENCE) == 3


@pytest.mark.parametrize("visible", ["", None], ids=["hidden", "absent"])
def test_a_machine_without_gpus_is_one_sentence(launch, visible):
    if visible is None and devices.visible_devices():
        pytest.skip("this machine has GPUs")
    process = launch(2, visible=visible)
    assert process.wait(timeout=PATIENCE) == 1
    message = process.stderr.read().strip()
    assert message.startswith("This job asks for 2 GPUs and sees none") and "\n" not in message


def test_too_few_gpus_are_one_sentence_at_once(launch):
    process = launch(2, visible="5")
    assert process.wait(timeout=PATIENCE) == 1
    message = process.stderr.read()
    assert "asks for 2 GPUs and sees only 5" in message and "Waiting" not in message


def test_nvidia_smi_names_the_gpus_where_none_are_set(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices.visible_devices() == ["0", "1"]
