"""The exceptions that a user's input, data or machine can cause."""


class InputError(ValueError):
    """A mistake outside the code: bad data, a bad flag, a missing device or package, a full disk.

    The message says what is wrong, where (file and offset, flag, or field) and how to fix it.
    Commands print it as one line and exit with `exit_code`; anything else is a defect and keeps its traceback.
    """

    exit_code = 2


class StorageError(InputError):
    """The run folder cannot be written any more; a scheduler should look at the disk before it starts the run again."""

    exit_code = 74  # EX_IOERR of sysexits.h
