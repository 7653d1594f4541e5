"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Bad input. The message is one line that names the file, line or field, and the mend; commands exit with code 2."""
