# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Other architectures behind one interface, so that one loop trains and scores them all on the same documents."""
