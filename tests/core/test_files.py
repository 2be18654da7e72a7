from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from core import files
from core.errors import InputError, NotWritten


def netcdf(path: Path) -> None:
    xr.Dataset({"x": 1}).to_netcdf(path, engine="h5netcdf")


@pytest.mark.parametrize("content", ["text", netcdf], ids=["text", "netcdf"])
def test_a_file_that_cannot_be_written_is_named_with_the_reason(
    tmp_path: Path, content: str | Callable[[Path], object]
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "out.nc"
    with pytest.raises(NotWritten) as found:
        files.write(path, content)
    assert (found.value.filename, found.value.strerror) == (str(path), "Not a directory")


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as found:
        files.write(tmp_path / "a", fill)
    # Callers take an InputError as a reason to remove what was begun.
    assert not isinstance(found.value, InputError)
    assert found.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_another_file_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        files.write(tmp_path / "a", lambda temporary: temporary.write_bytes((tmp_path / "absent").read_bytes()))
    with pytest.raises(NotWritten, match="inner"):
        files.write(tmp_path / "a", lambda _: files.write(tmp_path / "none" / "inner", "text"))
