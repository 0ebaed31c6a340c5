"""``python -m spml_fast`` is the console script: what ``torchrun -m spml_fast`` starts in several processes."""

import sys

from .cli import main

sys.exit(main())
