"""Where data sets and caches lie."""

from siutils.core import files as paths


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SIUTILS_DATA", raising=False)
    monkeypatch.delenv("SIUTILS_CACHE", raising=False)
    assert paths.data_dir() == paths.home_dir() / "data"
    assert paths.cache_dir() == paths.home_dir() / "data" / "cache"
    monkeypatch.setenv("SIUTILS_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("SIUTILS_CACHE", str(tmp_path / "c"))
    assert (paths.data_dir(), paths.cache_dir()) == (tmp_path / "d", tmp_path / "c")


def test_home_is_the_checkout_or_a_cache_folder(monkeypatch, tmp_path):
    package = tmp_path / "siutils"
    package.mkdir()
    monkeypatch.setattr(paths, "__file__", str(package / "core" / "files.py"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert paths.home_dir() == tmp_path / "user" / ".cache" / "siutils"
    (tmp_path / "pyproject.toml").touch()
    assert paths.home_dir() == tmp_path
