"""`python -m stable_ssl` is `stable-ssl`."""

import sys

from .cli import main

sys.exit(main())
