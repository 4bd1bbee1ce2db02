"""Paths as people type them: with ~, and with letters in either Unicode form."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

from azllm_lightning.cli.messages import tr

LOCAL = "local path"
OUTPUT = "local path to write to"
ANYWHERE = "path or URL"

LocalPath = Annotated[str, LOCAL]
"""The type of a setting that names a file or folder of this machine."""

OutputPath = Annotated[str, OUTPUT]
"""The same, of what is written: its name must be Unicode, as torch and TensorBoard require."""

TextPath = Annotated[str, ANYWHERE]
"""The type of a setting that names text: a path, a glob or a URL."""

DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)
"""The names that Windows keeps for devices, with any ending."""

LONGEST_NAME = 200
"""Bytes of UTF-8 in a folder's name: file systems allow 255, and some files add to it."""


def check_folder_name(key: str, name: str) -> None:
    """Raise ValueError, naming the setting `key`, unless `name` can name a folder everywhere.

    A run folder may be moved to another system.
    """
    is_special = not name or name in (".", "..") or name != name.strip(" .")
    if is_special or re.search(r'[<>:"/\\|?*\x00-\x1f\x7f]', name):
        message = tr(
            "{key}={name} cannot be a folder name: it must not contain {forbidden} or "
            "begin or end with a dot or a space",
            key=key,
            name=repr(name),
            forbidden='< > : " / \\ | ? *',
        )
        if re.fullmatch(r"[^/]+/version_\d+", name):  # as `azllm runs` lists them
            folder = f"lightning_logs/{name}"
            message += tr("; to resume that run give ckpt_path={folder}", folder=folder)
        raise ValueError(message)
    if DEVICES.match(name):
        raise ValueError(
            tr(
                "{key}={name} cannot be a folder name: Windows keeps it for a device; choose "
                "another",
                key=key,
                name=repr(name),
            )
        )
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        raise ValueError(
            tr(
                "{key}={name} is too long for a folder name: at most {most} bytes",
                key=key,
                name=repr(name),
                most=LONGEST_NAME,
            )
        )


def escape_surrogates(json_text: str) -> str:
    """`json_text` with undecodable bytes of file names as \\u escapes, which UTF-8 can store.

    `json.loads` turns them back.
    """
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", json_text)


def check_unicode(key: str, text: str) -> None:
    """Raise ValueError, naming the setting `key`, if `text` has bytes that were not UTF-8."""
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(
            tr(
                "{key}={value} has bytes that are not UTF-8: type it again, or check the encoding "
                "of the terminal or file that it comes from",
                key=key,
                value=repr(text),
            )
        )


def last_part(path: str) -> str:
    """The name of the file or folder at a path stored on any system, Windows included."""
    return PurePosixPath(path.replace("\\", "/")).name


def path_as_meant(typed: str, key: str, kind: str) -> str:
    """The path that `typed` means: ~ is the home folder, and the name of an existing file may be
    typed in NFC or NFD, which look the same.

    Raises ValueError, naming the setting `key`, for an empty path, and for a URL where `kind` is
    LOCAL.
    """
    if not typed.strip():
        raise ValueError(tr("{key} is empty: give a path, or omit it", key=key))
    scheme, separator, _ = typed.partition("://")
    if separator and scheme == "file":
        typed = url2pathname(urlsplit(typed).path)
    elif separator:
        if kind == ANYWHERE:
            return typed
        raise ValueError(
            tr(
                "{key}={path}: a URL; give the path of a file or folder on this machine",
                key=key,
                path=typed,
            )
        )
    if kind == OUTPUT:
        check_unicode(key, typed)
    if typed.startswith("~"):
        with contextlib.suppress(RuntimeError):  # ~name of nobody is a name like any other
            typed = str(Path(typed).expanduser())
    return _existing_form(typed)


def run_as_meant(typed: str, logs: str) -> str:
    """The newest run folder with a checkpoint of the run in `logs` that is called `typed`; `typed`
    if that is the path of something, or no run's name.
    """
    place = Path(_existing_form(str(Path(logs, typed))))
    if os.path.lexists(typed) or Path(typed).name != typed or not place.is_dir():
        return typed
    numbers = [
        int(folder.name.removeprefix("version_"))
        for folder in place.iterdir()
        if re.fullmatch(r"version_\d+", folder.name) and any(folder.glob("checkpoints/*.ckpt"))
    ]
    return str(place / f"version_{max(numbers)}") if numbers else typed


def _existing_form(path: str) -> str:
    """`path`, or the spelling in the other Unicode form of what exists there."""
    if path.isascii() or os.path.lexists(path):
        return path
    found = Path()
    for part in Path(path).parts:
        if not part.isascii() and not os.path.lexists(found / part):
            part = _entry_named(found, part)
        found /= part
    return str(found)


def _entry_named(folder: Path, name: str) -> str:
    """The entry of `folder` that looks like `name`; `name` if there is none."""
    composed = unicodedata.normalize("NFC", name)
    try:
        entries = [entry.name for entry in folder.iterdir()]
    except OSError:
        return name
    return next(
        (entry for entry in entries if unicodedata.normalize("NFC", entry) == composed), name
    )
