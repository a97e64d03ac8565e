"""Errors that the commands show as one line instead of a traceback."""


class SamjaxError(ValueError):
    """Something the user can fix; the message is one sentence that names the thing and the remedy."""


class InvalidExample(Exception):
    """Why an image, or its annotations, cannot be used.

    cause: a short phrase by which such images are counted, such as 'unreadable image'; detail: what is wrong here.
    """

    def __init__(self, cause: str, detail: str):
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    return ' '.join(str(error).split())
