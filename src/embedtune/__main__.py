"""`python -m embedtune`"""

import sys

from embedtune.cli.main import main

sys.exit(main())
