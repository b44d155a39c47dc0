"""The raw public files: archives or folders, one a repository, read in place."""

import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from fusion_jax.data.task import TaskError

REPOSITORIES = (
    "declare-lab/MELD",
    "emorynlp/emotion-detection",
    "emorynlp/reading-comprehension",
    "Mayer123/Multiparty-Dialog-RC",
    "emorynlp/character-identification",
    "emorynlp/FriendsQA",
    "emorynlp/personality-detection",
    "nlpdata/dialogre",
    "emorynlp/character-mining",
)


class RawFiles:
    """Reads `<owner>__<repository>` folders or `.tar.gz` archives of a folder.

    Attributes:
      missing: what was asked for and is not there, in words.
    """

    def __init__(self, folder: Path) -> None:
        """Looks which repositories are there.

        Raises:
          TaskError: not a folder, or no repository in it.
        """
        self.folder = folder
        self.missing: list[str] = []
        self._archives: dict[str, dict[str, bytes]] = {}
        if not folder.is_dir():
            raise TaskError(f"{folder}: no such folder; give the one with the archives")
        if not any(self._home(repository) for repository in REPOSITORIES):
            names = ", ".join(_file_name(repository) for repository in REPOSITORIES)
            raise TaskError(
                f"{folder}: none of the source repositories is here; expected some of "
                f"{names}, each as a folder or as a .tar.gz of it"
            )

    def read(self, repository: str, path: str) -> bytes | None:
        """The bytes of a file, or None where it is not there.

        Raises:
          TaskError: names the archive that is damaged.
        """
        home = self._home(repository)
        if home is None:
            return None
        if home.is_dir():
            file = home / path
            return file.read_bytes() if file.is_file() else None
        if repository not in self._archives:
            self._archives[repository] = _unpack(home)
        return self._archives[repository].get(path)

    def json(self, repository: str, path: str) -> Any | None:
        """A JSON file's value, or None where it is not there."""
        data = self.read(repository, path)
        if data is None:
            return None
        return parse_json(data, f"{repository} {path}")

    def csv(
        self, repository: str, path: str, columns: tuple[str, ...]
    ) -> list[dict[str, str]] | None:
        """A CSV file's rows, or None where it is not there.

        Raises:
          TaskError: names the columns that the file lacks, and those it has.
        """
        data = self.read(repository, path)
        if data is None:
            return None
        where = f"{repository} {path}"
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TaskError(f"{where}: not UTF-8 ({error})") from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        found = reader.fieldnames or []
        absent = [column for column in columns if column not in found]
        if absent:
            raise TaskError(
                f"{where}: no column {', '.join(absent)}; it has {', '.join(found)}. "
                "The file's form has changed: fetch the published version again"
            )
        rows = list(reader)
        if any(None in row.values() for row in rows):
            raise TaskError(f"{where}: a row has fewer cells than columns; cut off?")
        return rows

    def lost(self, repository: str, path: str, consequence: str) -> None:
        """Notes a missing file and what follows from it."""
        self.missing.append(f"{repository} {path}: {consequence}")

    def _home(self, repository: str) -> Path | None:
        folder = self.folder / _file_name(repository)
        archive = self.folder / f"{_file_name(repository)}.tar.gz"
        if folder.is_dir():
            return folder
        return archive if archive.is_file() else None


def parse_json(data: bytes, where: str) -> Any:
    """The value of JSON bytes; `where` names them in the error."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise TaskError(f"{where}: not JSON ({error}); fetch it again") from error


def unzip(data: bytes, where: str) -> dict[str, bytes]:
    """Members of a zip file by the last part of their name.

    Raises:
      TaskError: names the damaged file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {
                Path(name).name: archive.read(name)
                for name in archive.namelist()
                if not name.endswith("/") and "__MACOSX" not in name
            }
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise TaskError(f"{where}: damaged zip file ({error})") from error


def _file_name(repository: str) -> str:
    return repository.replace("/", "__")


def _unpack(archive: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(archive, "r:*") as tar:
            files = {}
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    path = member.name.removeprefix("./").partition("/")[2]
                    files[path] = content.read()
            return files
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        OSError,
    ) as error:
        raise TaskError(
            f"{archive}: damaged, or not a .tar.gz ({error}); fetch it again"
        ) from error
