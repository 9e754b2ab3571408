"""What a file may hold that nobody should unpickle, for the tests."""

import os


class Harmful:
    """Unpickling this creates a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)
