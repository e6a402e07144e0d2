"""``python -m torchrsm``."""

import sys

from torchrsm.cli import main

sys.exit(main())
