"""``python -m torchrsm.cli``."""

import sys

from torchrsm.cli import main

sys.exit(main())
