"""Where data sets, caches and results lie."""

import os
from pathlib import Path


def home_dir() -> Path:
    """The checkout that holds this package, or ``~/.cache/siutils`` when it is installed.

    >>> home_dir().is_absolute()
    True
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return checkout
    return Path.home() / ".cache" / "siutils"


def data_dir() -> Path:
    """Folder of the data sets: ``$SIUTILS_DATA``, else ``data`` in `home_dir`. May be read-only.

    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ, SIUTILS_DATA="/images"):
    ...     print(data_dir())
    /images
    """
    given = os.environ.get("SIUTILS_DATA")
    return Path(given).expanduser() if given else home_dir() / "data"


def cache_dir() -> Path:
    """Folder of checkpoints and features: ``$SIUTILS_CACHE``, else ``data/cache`` in `home_dir`.

    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ, SIUTILS_CACHE="/scratch"):
    ...     print(cache_dir())
    /scratch
    """
    given = os.environ.get("SIUTILS_CACHE")
    return Path(given).expanduser() if given else home_dir() / "data" / "cache"
