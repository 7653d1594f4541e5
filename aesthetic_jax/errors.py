"""The one kind of error that the user can fix."""


class UserError(Exception):
    """Bad input: one line that names the file, line or field, and the fix. Exit code 2."""
