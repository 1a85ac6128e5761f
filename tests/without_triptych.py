"""Imported first, or put in front of a program: triptych and its folders cannot be imported after it."""

import sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triptych", "modeling", "processing"):
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, NotInstalled())
