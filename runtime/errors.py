"""The one exception for a user's mistake."""


class UserError(ValueError):
    """Something the user can mend; the message is one sentence saying how. Command lines print it and exit with 2."""
