"""Open a `.npy` or `.npz` file without loading it: what its header tells, and its array when it is asked for.

Files come from anywhere, so nothing in them is trusted: pickled objects are never loaded, a header that promises more
than the file holds is refused before memory is taken, and whatever is wrong ends in a `ValueError` that names the file.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from torchrsm.streams.paths import printable, require_local

ARRAY_SUFFIXES = (".npy", ".npz")
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_MOST_DEFLATED = 1100  # bytes from one of a deflated file: no more is possible


class ArrayFile:
    """The array of a `.npy` or `.npz` file. Making one reads the header; the file is not kept open.

    Args:
        path: of the file, whatever its name ends in. A `.npz` file must hold one array, or one named ``frames``;
            ``file.npz:name`` chooses another.

    Raises:
        ValueError: the file is missing, cut, or no such file; or it holds several arrays, or Python objects.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._key = _path_and_key(require_local(path))
        if not self._path.is_file():
            kind = "a folder" if self._path.is_dir() else "something else" if self._path.exists() else None
            raise ValueError(
                f"{printable(self._path)} must be an existing .npy or .npz file; got {kind or 'nothing at that path'}"
            )
        self._member: zipfile.ZipInfo | None = None
        with self._typed_errors(), self._path.open("rb") as file:
            begin = file.read(len(_NPY))
            if begin.startswith(_ZIP[:2]):
                with zipfile.ZipFile(file) as archive:
                    self._member = self._chosen(archive)
                    with archive.open(self._member) as stream:
                        self._read_header(stream, self._member.file_size)
            else:
                if self._key is not None:
                    raise self._refusal(f"one array has no name; got {self._key!r}")
                file.seek(0)
                self._read_header(file, self._path.stat().st_size)

    @property
    def name(self) -> str:
        """The file, and which array of it, for messages."""
        return printable(self._path if self._key is None else f"{self._path}:{self._key}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes as they are stored."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values as they are stored."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all values, unpacked."""
        return math.prod(self._shape) * self._dtype.itemsize

    @property
    def is_mapped(self) -> bool:
        """Whether `read` takes no memory for what is not used: so for `.npy`, not for `.npz`."""
        return self._member is None

    def read(self) -> NDArray[Any]:
        """Return the array: a view into the file of a `.npy`, all of a `.npz`. It must not be written to."""
        order: Any = "F" if self._fortran else "C"
        with self._typed_errors():
            if self._member is None:
                return np.memmap(self._path, self._dtype, "r", self._offset, self._shape, order)
            with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as stream:
                stream.read(self._offset)
                content = stream.read()  # to its end, where the checksum is compared
            return np.ndarray(self._shape, self._dtype, content, order=order)

    def _read_header(self, file: IO[bytes], size: int) -> None:
        """Read shape, type, order and place of the values from the beginning of a `.npy`, and hold them against it."""
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise self._refusal("its array must be of numbers, without fields or names")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self._shape, self._fortran, self._dtype = read(file)
        self._offset = file.tell()
        if self._dtype.hasobject:
            raise self._refusal("it holds Python objects, which are never loaded")
        if self._dtype.fields is not None or self._dtype.subdtype is not None:
            raise self._refusal(f"its array must be of numbers; got records of {self._dtype}")
        promised = self.nbytes
        if min(self._shape, default=0) < 0 or self._offset + promised > size:
            raise self._refusal(f"its header tells of {promised} bytes of values, it holds {size - self._offset}")
        if self._member is not None:
            if self._offset + promised != size:
                raise self._refusal(f"its header tells of {promised} bytes of values, it holds {size - self._offset}")
            if self._member.file_size > _MOST_DEFLATED * self._path.stat().st_size:
                raise self._refusal(f"it tells of {self._member.file_size} bytes, more than it can hold")

    def _chosen(self, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if not members:
            raise self._refusal("there is no array in it")
        if self._key is None and len(members) > 1 and "frames" not in members:
            first = next(iter(members))
            raise ValueError(
                f"{self.name} must hold one array, or one named 'frames'; got {list(members)}: choose one by its "
                f"name, such as {printable(self._path)}:{printable(first)}"
            )
        key = self._key or ("frames" if "frames" in members else next(iter(members)))
        if key not in members:
            raise ValueError(f"{printable(self._path)} must hold an array named {key!r}; got {list(members)}")
        return members[key]

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(f"{self.name} must be a complete .npy or .npz file without pickled objects: {reason}")

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Let errors of the file system through; tell all others in words of our own."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a header by Python 2, which is read all the same
                yield
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._refusal("it ends too early, or is damaged") from error
        except MemoryError as error:
            raise ValueError(f"{self.name} must fit into memory; got an array of {self._shape}") from error
        except Exception as error:  # a broken file breaks the parsers of zip, zlib and npy in a dozen ways
            if isinstance(error, ValueError) and str(error).startswith((self.name, printable(self._path))):
                raise
            raise self._refusal("it ends too early, or is damaged") from error


def is_array_path(path: str | Path) -> bool:
    """Return whether a path names an array: by its suffix, as ``file.npz:name``, or by how the file begins."""
    file, key = _path_and_key(require_local(path))
    if key is not None or file.suffix.lower() in ARRAY_SUFFIXES:
        return not file.is_dir()
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        begin = opened.read(len(_NPY))
    return begin == _NPY or (begin.startswith(_ZIP) and zipfile.is_zipfile(file))


def _path_and_key(path: Path) -> tuple[Path, str | None]:
    """Split ``file.npz:name``; a file that has all of it as its name is that file."""
    split = re.fullmatch(r"(.*\.npz):([^/]+)", str(path), re.IGNORECASE | re.DOTALL)
    if split is None or path.exists():
        return path, None
    return Path(split[1]), split[2]
