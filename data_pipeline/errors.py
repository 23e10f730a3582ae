# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The one exception that means "the user can mend this": shown as a single line, never as a traceback."""


class UserError(Exception):
    """A mistake in a setting, a file or an argument.

    The message is one line that names the setting or file, the value found, and the mend. The command line
    prints it and ends with `exit_code`; library users may catch it.

    Args:
        message: The line to show.
        exit_code: 2 for bad usage (settings, arguments, missing or unfit inputs), 1 for work that failed.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


class DamagedDocument(UserError):
    """The stored tokens of one document are not those that were written; nothing of it may be trained on.

    Args:
        message: The line to show; it names the shard and the document.
        document: The document's number in its data set.
    """

    def __init__(self, message: str, document: int) -> None:
        super().__init__(message, exit_code=1)
        self.document = document
