"""What the probe container runs in tests: prints the lines that STUB_SMI holds, in nvidia-smi's CSV form."""

import os
import sys

if "-L" in sys.argv:
    print(os.environ.get("STUB_SMI_L", ""))
else:
    print(os.environ.get("STUB_SMI", ""))
