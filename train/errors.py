"""The one exception that a user's input, data or machine can cause."""


class InputError(ValueError):
    """A mistake outside the code: bad data, a bad flag, a missing device or package, a full disk.

    The message says what is wrong, where (file and offset, flag, or field) and how to fix it.
    Commands print it as one line and exit with code 2; anything else is a defect and keeps its traceback.
    """
