"""Errors that `train.py` and `eval.py` show as one line instead of a traceback."""


class SamjaxError(ValueError):
    """Something the user can mend; the message is one sentence that names the thing and the mend."""


def one_line(error: Exception) -> str:
    """What an error says, on one line; ml_collections hides what is wrong with an option in errors within errors."""
    reason = error
    while isinstance(reason, (AttributeError, KeyError)):
        reason = reason.args[0]
    return ' '.join(str(reason).split())
