"""What the probe container runs in tests: prints the lines that STUB_SMI holds (``;`` between two), in nvidia-smi's CSV
form, every ``--loop`` seconds if so told. Without STUB_SMI it fails as the true one does where there is no driver."""

import os
import sys
import time

if "STUB_SMI" not in os.environ:
    print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    sys.exit(9)
every_s = next((int(arg.partition("=")[2]) for arg in sys.argv if arg.startswith("--loop=")), 0)
while True:
    print(os.environ["STUB_SMI"].replace(";", "\n"), flush=True)
    if not every_s:
        break
    time.sleep(every_s)
