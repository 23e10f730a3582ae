# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""What names of data sets may stand in a configuration, which is kept with the run and copied for jobs."""

from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.far import is_address


def without_passwords(data: Any) -> Any:
    """The section `data` of a configuration, if its data sets may be named like this.

    Raises:
        ValueError: One is named by an address that cannot be used, or that has a password in it.
    """
    sources = data.path if isinstance(data.path, list) else [data.path]
    try:
        for source in (*sources, data.eval_path):
            is_address(getattr(source, "path", source) or "")
    except UserError as error:
        raise ValueError(str(error)) from None
    return data
