"""``python -m siutils`` is the command ``siutils``."""

import sys

from siutils.commands import main

sys.exit(main())
