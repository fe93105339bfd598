"""A folder of images with their metadata: what is there, and its index."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gaudi.callbacks.images.metadata import (
    SUFFIXES,
    Fields,
    ImageFormat,
    differences,
    read_fields,
)
from lightning_gaudi.callbacks.images.naming import file_name, is_left_over, numbers_in
from lightning_gaudi.callbacks.images.sheet import contact_sheets
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.whole_files import write_whole


class ImageFolder:
    """Images of one format in a folder.

    Args:
        path: The folder.
        image_format: The format; images of others are passed over.
    """

    def __init__(self, path: Path, image_format: ImageFormat) -> None:
        self.path = path
        self._suffix = SUFFIXES[image_format]
        self._known: dict[tuple[int, int], list[Path]] = {}

    def make(self) -> None:
        """Make the folder where there is none.

        Raises:
            ConfigurationError: It cannot be made or written to, or a file has its name.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            is_file = self.path.exists() and not self.path.is_dir()
            what = "a file is there" if is_file else f"{error.strerror or error}"
            raise ConfigurationError(
                f"cannot write images to the folder {self.path.absolute()}: {what}. Give another "
                "folder in ImageWriter(dirpath)."
            ) from error

    def remove_left_overs(self) -> None:
        """Remove what an earlier run was killed in the middle of writing."""
        for path in self.path.iterdir():
            if is_left_over(path.name, self._suffix):
                path.unlink(missing_ok=True)

    def scan(self) -> None:
        """Look which images are there."""
        self._known = {}
        for path in sorted(self.path.iterdir()):
            numbers = numbers_in(path.name, self._suffix)
            if numbers is not None:
                self._known.setdefault(numbers, []).append(path)

    def path_of(self, fields: Mapping[str, Any]) -> Path:
        """Say which file an image gets."""
        prompt = fields.get("prompt", fields.get("class_labels", ""))
        name = file_name(fields["index"], fields["image_number"], str(prompt), self._suffix)
        return self.path / name

    def files_of(self, fields: Mapping[str, Any]) -> list[Path]:
        """List the files that were there for an image's numbers at the last `scan`."""
        return self._known.get((fields["index"], fields["image_number"]), [])

    def differences(self, fields: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
        """Compare an image that is to be made with the one that is there.

        Returns:
            The file, and what it was made from otherwise (nothing, if it is the same); None where
            there is no file.
        """
        for path in self.files_of(fields):
            found = read_fields(path)
            if found is None:
                return path, ["it is no image that ImageWriter wrote"]
            return path, differences(fields, found[0])
        return None

    def entries(self) -> list[Fields]:
        """Describe all images of the folder, in order of their numbers."""
        self.scan()
        entries = []
        for _, paths in sorted(self._known.items()):
            for path in paths:
                found = read_fields(path)
                if found is None:
                    warnings.warn(
                        f"{path} has the name of an image that ImageWriter writes, but it is none, "
                        "so it is not in the index.",
                        stacklevel=2,
                    )
                    continue
                fields, (width, height) = found
                entry = {"file": "", **fields, "width": width, "height": height}
                entries.append({**entry, "file": path.name})
        return entries

    def write_index(self, columns: int | None) -> None:
        """Write ``index.json`` and, with a number of columns, ``contact_sheet.png``.

        Further sheets are called ``contact_sheet_2.png`` and so on.
        """
        entries = self.entries()
        text = json.dumps(entries, indent=1, ensure_ascii=False)
        # A half of a surrogate pair becomes an escape, which is JSON's own for it.
        write_whole(self.path / "index.json", text.encode("utf-8", "backslashreplace"))
        if columns is None:
            return
        sheets = contact_sheets(self.path, entries, columns)
        for number, sheet in enumerate(sheets, start=1):
            write_whole(self._sheet(number), sheet)
        number = len(sheets) + 1
        while self._sheet(number).exists():  # of a run with more images or fewer columns
            self._sheet(number).unlink()
            number += 1

    def _sheet(self, number: int) -> Path:
        return self.path / f"contact_sheet{'' if number == 1 else f'_{number}'}.png"
