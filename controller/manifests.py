# SPDX-License-Identifier: Apache-2.0
"""Manifests: the bytes of a file to the objects in it, and what is wrong with the rest of it, line by line.

JSON and YAML; several documents; List kinds. Kinds that are not followed are passed over. What cannot be read takes
nothing else with it, and says which earlier object must stay in its place. Pure.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import yaml

from controller.errors import ManifestError
from controller.model import CLUSTER_SCOPED, Key, Kind, Object, api_of_kind, type_of_kind
from controller.source import Problem

SUFFIXES = (".json", ".yaml", ".yml")

# What an object is known by.
Ref = tuple[Kind, Key]


class Entry(NamedTuple):
    """An object and where it stands; digest: of its JSON text, or b"" where it was YAML."""

    obj: Object
    line: int
    digest: bytes


class Manifest(NamedTuple):
    """What a file says.

    Attributes:
        entries: the good objects.
        problems: (object or None where it is not known which, what is wrong).
    """

    entries: dict[Ref, Entry]
    problems: list[tuple[Ref | None, Problem]]

    def keeps(self, ref: Ref) -> bool:
        """Whether an object that was here before, and is not seen now, must stay: it may be among the bad."""
        return any(bad is None or bad == ref for bad, _ in self.problems)


EMPTY = Manifest({}, [])


def parse(name: str, data: bytes, before: Manifest = EMPTY) -> Manifest:
    """The objects in a file.

    Args:
        name: the file's name; its suffix tells JSON from YAML.
        before: what the file said before: an object whose JSON text is the same is not decoded again.
    """
    known = {entry.digest: (ref, entry.obj) for ref, entry in before.entries.items() if entry.digest}
    reader = _Reader(name, known)
    reader.read(_json_items(data) if name.endswith(".json") else _yaml_items(data))
    return Manifest(reader.entries, reader.problems)


class _Item(NamedTuple):
    """An object's text or its parsed content, or what is wrong with a document."""

    content: Any
    line: int
    kind: str = ""
    api: str = ""


class _Reader:
    """Collects a file's objects and problems."""

    def __init__(self, name: str, known: Mapping[bytes, tuple[Ref, Object]]) -> None:
        self._name = name
        self._known = known
        self.entries: dict[Ref, Entry] = {}
        self.problems: list[tuple[Ref | None, Problem]] = []

    def read(self, items: Iterator[_Item]) -> None:
        for item in items:
            if isinstance(item.content, ManifestError):
                self._complain(None, item.content)
            else:
                self._read_item(item)

    def _read_item(self, item: _Item) -> None:
        digest = b""
        if isinstance(item.content, bytes):
            digest = hashlib.blake2b(item.content, digest_size=16).digest()
            if digest in self._known:
                ref, obj = self._known[digest]
                self._add(ref, Entry(obj, item.line, digest))
                return
        ref_read: Ref | None = None
        try:
            ref_read = _ref(item)
            if ref_read:
                self._add(ref_read, Entry(_object(ref_read, item), item.line, digest))
        except ManifestError as error:
            self._complain(ref_read, error)

    def _add(self, ref: Ref, entry: Entry) -> None:
        if ref in self.entries:
            first = self.entries[ref].line
            self._complain(ref, ManifestError(f"defined twice; the one in line {first} is used", entry.line))
        else:
            self.entries[ref] = entry

    def _complain(self, ref: Ref | None, error: ManifestError) -> None:
        subject = label(ref) if ref else self._name
        self.problems.append((ref, Problem(subject, str(error), self._name, error.line)))


def label(ref: Ref) -> str:
    """An object as messages name it."""
    kind, (namespace, name) = ref
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


class _Name(msgspec.Struct):
    name: str = ""
    namespace: str = ""


class _Header(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    metadata: _Name | None = None


class _List(_Header):
    items: list[msgspec.Raw] | None = None


# A document that is nested too deeply is no better than a malformed one.
_UNREADABLE = (msgspec.MsgspecError, RecursionError)

_header = msgspec.json.Decoder(_Header)
_list = msgspec.json.Decoder(_List)
_decoders = {kind: msgspec.json.Decoder(struct) for kind, struct in type_of_kind.items()}


def _ref(item: _Item) -> Ref | None:
    """Which object an item is; None where its kind is not followed. Raises ManifestError."""
    try:
        if isinstance(item.content, bytes):
            header = _header.decode(item.content)
        else:
            header = msgspec.convert(item.content, _Header)
    except _UNREADABLE as error:
        raise ManifestError(str(error), item.line) from error
    kind, api = header.kind or item.kind, header.api_version or item.api
    if not kind or not api:
        raise ManifestError(f"no {'apiVersion' if kind else 'kind'}", item.line)
    if kind not in api_of_kind or _group(api) != _group(api_of_kind[Kind(kind)]):
        return None
    if not header.metadata or not header.metadata.name:
        raise ManifestError(f"a {kind} without metadata.name", item.line)
    namespace = "" if kind in CLUSTER_SCOPED else header.metadata.namespace or "default"
    return Kind(kind), (namespace, header.metadata.name)


def _object(ref: Ref, item: _Item) -> Object:
    """Raises ManifestError."""
    kind, (namespace, _) = ref
    try:
        if isinstance(item.content, bytes):
            obj: Object = _decoders[kind].decode(item.content)
        else:
            obj = msgspec.convert(item.content, type_of_kind[kind])
    except _UNREADABLE as error:
        raise ManifestError(str(error), item.line) from error
    if obj.metadata.namespace != namespace:
        metadata = msgspec.structs.replace(obj.metadata, namespace=namespace)
        obj = msgspec.structs.replace(obj, metadata=metadata)
    return obj


def _group(api: str) -> str:
    return api.rpartition("/")[0]


def _list_kind(kind: str) -> str:
    """The kind of a typed list's items, which do not repeat it."""
    return kind.removesuffix("List")


# --- JSON ---

_BETWEEN = re.compile(rb"[\s,]*")
_BYTE = re.compile(r" ?\(byte (\d+)\)")


def _json_items(data: bytes) -> Iterator[_Item]:
    try:
        yield from _json_document(data, data, 0)
    except ManifestError as error:
        if "trailing characters" not in str(error):
            yield _Item(error, error.line)
            return
        yield from _json_stream(data)


def _json_stream(data: bytes) -> Iterator[_Item]:
    """Documents one after the other, as kubectl takes them."""
    decoder, text, offset = json.JSONDecoder(), data.decode("utf-8", "replace"), 0
    while text[offset:].strip():
        offset += len(text) - offset - len(text[offset:].lstrip())
        line = text.count("\n", 0, offset) + 1
        try:
            _, end = decoder.raw_decode(text, offset)
            document = text[offset:end].encode()
            yield from _json_document(document, document, line - 1)
        except ValueError as error:
            at = getattr(error, "lineno", line)
            yield _Item(ManifestError(f"not JSON: {getattr(error, 'msg', error)}", at), at)
            return
        except ManifestError as error:
            yield _Item(error, error.line)
        offset = end


def _json_document(data: bytes, text: bytes, lines_before: int) -> Iterator[_Item]:
    """A document's objects, with their lines. Raises ManifestError."""
    try:
        top = _list.decode(text)
    except _UNREADABLE as error:
        raise _json_error(error, text, lines_before) from error
    offset, line = 0, lines_before + 1
    if top.items is None or not top.kind.endswith("List"):
        start = len(data) - len(data.lstrip())
        yield _Item(data, line + data.count(b"\n", 0, start))
        return
    for raw in top.items:
        item = bytes(raw)
        start = data.find(item, offset) if offset == 0 else _BETWEEN.match(data, offset).end()  # type: ignore[union-attr]
        line += data.count(b"\n", offset, start)
        yield _Item(item, line, _list_kind(top.kind), top.api_version)
        offset = start + len(item)
        line += item.count(b"\n")


def _json_error(error: Exception, data: bytes, lines_before: int) -> ManifestError:
    """msgspec's complaint, with the byte that it names turned into a line."""
    message = str(error)
    at = _BYTE.search(message)
    if at:
        line = data.count(b"\n", 0, int(at[1])) + 1
    else:
        line = data.rstrip().count(b"\n") + 1 if "truncated" in message else 1
    return ManifestError(_BYTE.sub("", message), lines_before + line)


# --- YAML ---


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: what looks like a date is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}

_DOCUMENT = re.compile(r"^---(?=\s|$)", re.MULTILINE)


def _yaml_items(data: bytes) -> Iterator[_Item]:
    """Each document is parsed by itself, so that a broken one leaves the others."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield _Item(ManifestError("not UTF-8", line), line)
        return
    starts = [0, *(match.start() for match in _DOCUMENT.finditer(text)), len(text)]
    for start, end in pairwise(starts):
        part = text[start:end].removeprefix("---")
        if not _is_blank(part):
            yield from _yaml_document(part, text.count("\n", 0, start))


def _is_blank(part: str) -> bool:
    return all(not line.strip() or line.lstrip()[0] in "#%" for line in part.splitlines())


def _yaml_document(text: str, lines_before: int) -> Iterator[_Item]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return
        for item in _list_nodes(node) or [node]:
            line = lines_before + item.start_mark.line + 1
            yield _Item(loader.construct_document(item), line, *_list_type(node, item))
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = lines_before + (mark.line if mark else 0) + 1
        yield _Item(ManifestError(f"not YAML: {getattr(error, 'problem', None) or error}", line), line)
    finally:
        loader.dispose()


def _fields(node: Any) -> dict[str, Any]:
    return {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _list_nodes(node: Any) -> list[Any]:
    """The items of a List; nothing where the document is none."""
    fields = _fields(node)
    items = fields.get("items")
    if isinstance(items, yaml.SequenceNode) and str(fields["kind"].value if "kind" in fields else "").endswith("List"):
        return list(items.value)
    return []


def _list_type(node: Any, item: Any) -> tuple[str, str]:
    """(kind, apiVersion) that items of a List may leave out."""
    if item is node:
        return "", ""
    fields = _fields(node)
    api = fields["apiVersion"].value if "apiVersion" in fields else ""
    return _list_kind(fields["kind"].value), api
