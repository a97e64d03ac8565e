"""The error that `train.py` and `eval.py` show as one line instead of a traceback."""


class SamjaxError(ValueError):
    """Something the user can mend; the message is one sentence that names the thing and the mend."""
