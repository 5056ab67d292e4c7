"""The one exception for a user's mistake, and checks of settings that raise it."""


class UserError(ValueError):
    """Something the user can mend; the message is one sentence saying how. Command lines print it and exit with 2."""


def check_at_least(least: float, settings: object, *names: str) -> None:
    """Refuse named settings below ``least``; None, a setting that was not given, may stay."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must {f'be at least {least}' if least else 'not be negative'}")


def check_at_most(most: float, settings: object, *names: str) -> None:
    """Refuse named settings above ``most``."""
    for name in names:
        if getattr(settings, name) > most:
            raise UserError(f"{name} is {getattr(settings, name)}; it must be at most {most}")


def check_probabilities(settings: object, *names: str) -> None:
    """Refuse named settings outside of 0..1."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} is a probability; {getattr(settings, name)} does not lie between 0 and 1")
