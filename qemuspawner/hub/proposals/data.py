"""Folders of data of a proposal: a name, a folder of the host, and whether it can be written."""

import re
import string
from collections.abc import Callable, Mapping, Sequence

from qemuspawner.hub.form.fields import quote
from qemuspawner.spec import DataFolder
from qemuspawner.texts import Text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_KEYS = {"name", "path", "read_only"}
_MAX_FOLDERS = 16
_MAX_PATH_BYTES = 1024


def parse_data(value: object) -> tuple[DataFolder, ...]:
    """Data folders of a list of tables with `name`, `path` and, unless it is true, `read_only`.

    Raises:
        ValueError: Some of it is wrong; the text is the reason, without a full stop.
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > _MAX_FOLDERS:
        raise ValueError(Text("'data' is not a list of at most {most} tables", most=_MAX_FOLDERS))
    folders = tuple(_parse_folder(table) for table in value)
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError(Text("'data' has two folders of the same name"))
    return folders


def _parse_folder(table: object) -> DataFolder:
    if not isinstance(table, Mapping) or not table.keys() <= _KEYS:
        raise ValueError(Text("'data' has an entry that is not a table of 'name', 'path' and 'read_only'"))
    name, path, read_only = table.get("name"), table.get("path"), table.get("read_only", True)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            Text(
                "'data' has a folder without 'name', which is up to 64 letters, digits, dots, dashes and "
                "underscores, the first one a letter or digit"
            )
        )
    if not isinstance(read_only, bool):
        raise ValueError(
            Text(
                "'data' has the folder {name}, whose 'read_only' is neither true nor false", name=quote(name)
            )
        )
    if not isinstance(path, str) or not is_plain(path):
        raise ValueError(
            Text(
                "'data' has the folder {name}, whose 'path' is not an absolute and plain one",
                name=quote(name),
            )
        )
    return DataFolder(name=name, path=path, read_only=read_only)


def fill_in(
    templates: Sequence[Mapping[str, object]], find: Callable[[str], object]
) -> list[Mapping[str, object]]:
    """Data folders with each `{placeholder}` of their paths replaced by what `find` says of it.

    A value can have slashes, and cannot lead out of the folder that the template begins with.

    Raises:
        ValueError: A value is missing, or leads elsewhere.
    """
    return [
        {**template, "path": _fill_in_path(str(template.get("path", "")), find)} for template in templates
    ]


def check_templates(templates: Sequence[Mapping[str, object]]) -> None:
    """Raises ValueError where they can be folders of no proposal."""
    for template in templates:
        parts = list(string.Formatter().parse(str(template.get("path", ""))))
        # What a source says must lie in something that the administrator says.
        if not parts or not re.match(r"/[^/]+/", parts[0][0]):
            raise ValueError("'path' begins with a folder, such as in '/data/{id}'")
        if any(conversion or spec for _, _, spec, conversion in parts):
            raise ValueError("'path' has a placeholder that is not just a name, such as '{id}'")
    parse_data(fill_in(templates, lambda _name: "x"))


def _fill_in_path(template: str, find: Callable[[str], object]) -> str:
    path = ""
    for literal, name, _, _ in string.Formatter().parse(template):
        path += literal
        if name is None:
            continue
        value = find(name)
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or not is_plain(f"/{text}"):
            raise ValueError(Text("its {name} cannot be part of the path of a folder", name=quote(name)))
        path += text
    return path


def is_plain(path: str) -> bool:
    """Whether it is absolute, is printable text, and has no parts that are empty or lead up."""
    parts = path.split("/")
    return (
        path.isprintable()
        and len(path.encode(errors="replace")) <= _MAX_PATH_BYTES
        and parts[0] == ""
        and len(parts) > 1
        and not {"", ".", ".."} & set(parts[1:])
    )
