"""Run a program on GPUs of its own: lock them, show it these alone, become the program.

    GPUS=1 python workflow/scripts/on_gpu.py .venv-vllm/bin/python workflow/scripts/generate.py ...

GPUS, which the rules set from their `gpu` resource, is how many (default 1; with 0 the program sees none). Where all
are in use it waits. The program keeps the process id, so signals and the exit status are its own.
"""

from __future__ import annotations

import os
import sys

from spillover import devices


def main(argv: list[str] | None = None) -> None:
    command = sys.argv[1:] if argv is None else argv
    asked = os.environ.get("GPUS", "1")
    if not command or not asked.isdigit():
        raise SystemExit(f"usage: GPUS=1 on_gpu.py PROGRAM ARGUMENT ... (GPUS is {asked!r})")
    taken: list[str] = []
    if int(asked):
        try:
            taken, _ = devices.take(int(asked), devices.visible_devices(), devices.lock_folder())
        except devices.DeviceError as error:
            raise SystemExit(str(error)) from None
        print(f"GPU {', '.join(taken)} for this job", file=sys.stderr, flush=True)
    # nvidia-smi counts in the order of the bus, CUDA by itself in that of speed
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(taken)}
    try:
        os.execvpe(command[0], command, os.environ | order)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}") from None


if __name__ == "__main__":
    main()
