# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read, what is passed over, and where each error is said to be."""

import json

import pytest

from controller.manifests import parse
from controller.tests.objects import JSON, endpoint, endpoint_slice, node, service, service_cidr


def _names(name: str, text: str) -> tuple[list[str], list[tuple[str, int]]]:
    """(objects with their lines as name:line, (subject, line) of each problem)."""
    found = parse(name, text.encode())
    return (
        [f"{ref[1][1]}:{entry.line}" for ref, entry in found.entries.items()],
        [(problem.subject, problem.line) for _, problem in found.problems],
    )


YAML_SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: shop, creationTimestamp: 2026-01-02T03:04:05Z}
spec: {clusterIP: 198.51.100.1, ports: [{name: http, port: %s}]}
"""


def test_yaml_documents_each_have_their_line() -> None:
    """Comments, empty documents and other kinds are passed over."""
    text = "# made by hand\n---\n" + YAML_SERVICE % ("a", 80) + "---\n# nothing\n---\nkind: Pod\napiVersion: v1\n---\n"
    assert _names("x.yaml", text + YAML_SERVICE % ("b", 81)) == (["a:3", "b:13"], [])


def test_yaml_broken_document_leaves_the_others() -> None:
    """And is named with the line where the parser stumbled."""
    text = YAML_SERVICE % ("a", 80) + "---\nkind: Service\n  bad: [\n---\n" + YAML_SERVICE % ("b", 81)
    assert _names("x.yaml", text) == (["a:1", "b:9"], [("x.yaml", 7)])


def test_yaml_wrong_type_names_the_object_and_its_line() -> None:
    """A field of the wrong type spoils its object alone."""
    text = YAML_SERVICE % ("a", "eighty") + "---\n" + YAML_SERVICE % ("b", 81)
    assert _names("x.yml", text) == (["b:6"], [("Service shop/a", 1)])


def test_yaml_list_items_have_their_own_lines() -> None:
    """Items of a List, and of a typed list, which does not repeat their kind."""
    items = "- metadata: {name: a}\n  spec: {podCIDRs: [203.0.113.0/24]}\n- metadata: {name: b}\n"
    assert _names("x.yaml", "apiVersion: v1\nkind: NodeList\nitems:\n" + items) == (["a:4", "b:6"], [])


def test_json_list_items_have_their_own_lines() -> None:
    """The same for JSON, indented or not."""
    items = [service("a"), service("b"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}, service("c")]
    text = json.dumps({"kind": "List", "apiVersion": "v1", "items": items}, indent=1)
    names, problems = _names("x.json", text)
    lines = text.splitlines()
    assert not problems
    for name in names:
        name, line = name.split(":")
        assert lines[int(line) - 1].strip() == "{"
        assert f'"name": "{name}"' in "\n".join(lines[int(line) - 1 : int(line) + 5])
    assert [name[0] for name in names] == ["a", "b", "c"]


def test_json_documents_one_after_the_other_are_read() -> None:
    """As kubectl takes them."""
    text = json.dumps(service("a")) + "\n" + json.dumps(service("b"), indent=1) + "\n\n" + json.dumps(node("n", [], []))
    names, problems = _names("x.json", text)
    assert [name[0] for name in names] == ["a", "b", "n"]
    assert not problems


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"kind": "List",\n "items": [\n  {"kind" "Service"}]}', 3),
        ('{"kind": "List",\n "items": [\n', 2),
        ("[]", 1),
        ("\n\nnonsense", 3),
    ],
)
def test_json_malformed_names_the_line(text: str, line: int) -> None:
    """msgspec counts bytes, people lines."""
    assert _names("x.json", text) == ([], [("x.json", line)])


def test_json_bad_item_leaves_the_others() -> None:
    """It is named by its line, and by its name where it has one."""
    items: list[JSON] = [service("a"), service("b", ports=[{"port": "x"}]), {"kind": "Service"}, service("c")]
    text = '{"apiVersion": "v1", "kind": "List", "items": [\n' + ",\n".join(map(json.dumps, items)) + "]}"
    assert _names("x.json", text) == (["a:2", "c:5"], [("Service shop/b", 3), ("x.json", 4)])


def test_object_defined_twice_in_a_file_is_named_and_the_first_used() -> None:
    """The second one's line is the one to look at."""
    assert _names("x.yaml", YAML_SERVICE % ("a", 80) + "---\n" + YAML_SERVICE % ("a", 81)) == (
        ["a:1"],
        [("Service shop/a", 6)],
    )


def test_other_groups_services_are_passed_over() -> None:
    """A kind of the same name of another API group is none of ours."""
    text = json.dumps(service("a") | {"apiVersion": "serving.knative.dev/v1"})
    assert _names("x.json", text) == ([], [])


def test_object_without_namespace_is_in_default() -> None:
    """As kubectl applies it, and its slice finds it there."""
    manifest = endpoint_slice("s1", [endpoint("203.0.113.1")])
    del manifest["metadata"]["namespace"]
    ((ref, entry),) = parse("x.json", json.dumps(manifest).encode()).entries.items()
    assert ref[1] == ("default", "s1")
    assert entry.obj.metadata.namespace == "default"


def test_unchanged_json_object_is_not_decoded_again() -> None:
    """The object of before is taken over as it is: one change in a long list costs one decoding."""
    before = parse("x.json", json.dumps({"kind": "List", "items": [service("a"), service("b")]}).encode())
    after = parse(
        "x.json", json.dumps({"kind": "List", "items": [service("a"), service("b", ports=[])]}).encode(), before
    )
    same = {ref[1][1]: entry.obj is before.entries[ref].obj for ref, entry in after.entries.items()}
    assert same == {"a": True, "b": False}


def test_not_utf8_names_the_line() -> None:
    """A YAML file of another encoding is no text."""
    found = parse("x.yaml", b"kind: Service\nname: \xff\n")
    assert [(problem.message, problem.line) for _, problem in found.problems] == [("not UTF-8", 2)]


def test_nested_too_deeply_is_an_error_not_a_crash() -> None:
    """Neither the parser's recursion limit nor ours ends the thread."""
    deep = '{"kind": "Service", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert len(parse("x.json", deep.encode()).problems) == 1


def test_object_without_namespace_is_of_the_cluster_or_of_the_default_one() -> None:
    """By its kind; what a manifest says of a namespace for the first is passed over."""
    manifests = [service_cidr("more", "198.51.100.0/24"), node("n", [], []), service("web")]
    for manifest in manifests:
        manifest["metadata"].pop("namespace", None)
    manifests[0]["metadata"]["namespace"] = "shop"
    found = parse("x.json", json.dumps({"kind": "List", "apiVersion": "v1", "items": manifests}).encode())
    assert [key for _, key in found.entries] == [("", "more"), ("", "n"), ("default", "web")]
    assert found.problems == []
