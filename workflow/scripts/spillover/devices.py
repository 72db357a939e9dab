"""Give a process GPUs that no other process uses: a lock per GPU, held as long as the process lives.

It knows the GPUs of one machine and nothing of what runs on them. Locks are the kernel's (flock), so that a killed
process never leaves one behind. They bind only those who ask here, and lie in a folder per user.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 1.0
MESSAGE_SECONDS = 60.0


class DeviceError(Exception):
    """The machine cannot give what is asked for; the message is one sentence for the user."""


def visible_devices() -> list[str]:
    """What CUDA calls the GPUs that this process may use: CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def lock_folder() -> Path:
    """Where the locks lie, made if need be: SPILLOVER_GPU_LOCKS, else a folder of the user on the machine itself."""
    # not tempfile.gettempdir(): TMPDIR may differ between jobs, which must agree on the folder
    folder = Path(os.environ.get("SPILLOVER_GPU_LOCKS") or f"/tmp/spillover-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def take(count: int, devices: list[str], folder: Path) -> tuple[list[str], list[int]]:
    """Lock `count` of `devices`, waiting until so many are free; returns them and the descriptors that hold them.

    All or none: a job that waits for its last GPU holds no other meanwhile, so that two of them cannot block each
    other. The descriptors survive exec; the locks end when the last process that holds them does.
    Raises DeviceError where the machine has fewer than `count`.
    """
    if len(devices) < count:
        seen = f"sees only {', '.join(devices)}" if devices else "sees none"
        raise DeviceError(
            f"This job asks for {count} GPU{'s' * (count > 1)} and {seen}: lower resources.gpu or train.gpus in the "
            "configuration, or let it see more through CUDA_VISIBLE_DEVICES"
        )
    waited, told = 0.0, 0.0
    while True:
        taken, held = [], []
        for device in devices:
            descriptor = try_lock(folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', device)}.lock")
            if descriptor is not None:
                taken.append(device)
                held.append(descriptor)
            if len(taken) == count:
                return taken, held
        for descriptor in held:
            os.close(descriptor)
        if waited >= told:
            print(
                f"Waiting for {count} of the GPUs {', '.join(devices)}: {len(taken)} free", file=sys.stderr, flush=True
            )
            told += MESSAGE_SECONDS
        pause = POLL_SECONDS * random.uniform(0.5, 1.5)  # two jobs that look at the same moments would stay in step
        time.sleep(pause)
        waited += pause


def try_lock(path: Path) -> int | None:
    """A descriptor, inherited by exec, that holds the lock on `path`; None where another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.set_inheritable(descriptor, True)
    return descriptor
