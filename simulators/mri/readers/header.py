"""The ISMRMRD XML header, which fastMRI files carry as well."""

from __future__ import annotations

from types import ModuleType
from xml.etree import ElementTree

from core.errors import InputError, require
from core.torchvision_guard import shield


def fastmri_data(name: str) -> ModuleType:
    """The module ``fastmri.data.<name>``, imported when it is first needed: the package is an extra.

    Raises:
        MissingExtra: the package is not installed.
    """
    shield()
    return require(f"fastmri.data.{name}", "mri")


class Header:
    """Elements of an ISMRMRD header by their path; of several encodings, the first.

    Raises:
        InputError: not XML.
    """

    def __init__(self, xml: str | bytes, where: str) -> None:
        self._query = fastmri_data("mri_data").et_query
        self.where = where
        try:
            self._root = ElementTree.fromstring(xml)
        except (ElementTree.ParseError, TypeError) as error:
            raise InputError(f"{where}: not XML ({error})") from error

    def text(self, *path: str) -> str | None:
        """Text of an element; None where it is absent."""
        try:
            return str(self._query(self._root, path)).strip()
        except RuntimeError:
            return None

    def number(self, *path: str, default: float | None = None) -> float:
        """Number in an element.

        Raises:
            InputError: the element is absent and has no default, or does not hold a finite number.
        """
        text = self.text(*path)
        if text is None and default is not None:
            return default
        try:
            number = float(text if text is not None else "nan")
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            raise InputError(f"{self.where}: {'/'.join(path)} is {text or 'absent'}, must be a number")
        return number

    def matrix(self, space: str) -> tuple[int, int, int]:
        """(x, y, z) of ``encodedSpace`` or ``reconSpace``: readout, phase encodes, slice encodes."""
        x, y, z = (int(self.number("encoding", space, "matrixSize", axis)) for axis in "xyz")
        return x, y, z

    def center(self, default: int | None = None) -> int:
        """The phase-encode step that holds DC."""
        return int(self.number("encoding", "encodingLimits", "kspace_encoding_step_1", "center", default=default))

    def padding(self, width: int, complete: bool = True) -> tuple[int, int]:
        """Lines [left, right) of ``width`` that the protocol could acquire.

        left = encoded y // 2 - center and right = left + maximum + 1, as in ``fastmri.data.SliceDataset``; lines that
        the array does not have are left out. Without ``complete``, absent limits mean that all lines could.

        Raises:
            InputError: a limit is absent, or no line remains.
        """
        encoded = self.matrix("encodedSpace")[1]
        limits = ("encoding", "encodingLimits", "kspace_encoding_step_1")
        start = encoded // 2 - self.center(None if complete else encoded // 2)
        maximum = int(self.number(*limits, "maximum", default=None if complete else encoded - 1))
        left, right = max(start, 0), min(start + maximum + 1, width)
        if left >= right:
            raise InputError(f"{self.where}: {'/'.join(limits)} leaves no line of {width}")
        return left, right
