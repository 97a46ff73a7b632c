"""Which test holds which rule of the specification: reads the table and the tests, writes the page.

conformance.tsv has the rules; `@pytest.mark.rule("SPL-012")` on a test says that it holds one.
Run by `tools/conformance`, which brings docs/conformance.md and README's count up to date.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
sys.path.insert(0, str(ROOT))

from pyvirtnet.negotiate import SUPPORTED  # noqa: E402

TABLE, PAGE, README = TESTS / "conformance.tsv", ROOT / "docs/conformance.md", ROOT / "README.md"
BESIDES = {"legacy"}  # what is built and no feature bit
AREAS = {
    "BAS": "Status, features, configuration, initialisation",
    "RSV": "Reserved feature bits",
    "VQC": "Virtqueues of either format",
    "SPL": "Split virtqueues",
    "PKD": "Packed virtqueues",
    "PCI": "PCI",
    "NET": "The network device",
    "CVQ": "Its control queue",
    "LEG": "Legacy interface",
}
_HEAD = """# Conformance

<!-- Written by tools/conformance out of tests/conformance.tsv and the tests' marks. -->

What VIRTIO asks of the driver of a network device, in our words, and the tests that hold it.
{summary}

A rule is held by tests of the driver (`@pytest.mark.rule`). Many of these run it against the strict
model of the device in `pyvirtnet/testing`, or the strict PCI function in `tests/fake_vfio.py`; then
the tests that show these objecting to the breach are named too, behind *objects:*. A rule of a
feature that the driver does not accept yet is not built, and is not held by anything.

Sections are those of VIRTIO 1.3. Out of scope and not listed: MMIO and CCW, other types of
devices, admin queues and what works through them (device groups, flow filters, IPsec); and
statements that only describe, without asking for anything.
"""
_COLUMNS = "| rule | | § | | tests |\n| --- | --- | --- | --- | --- |\n"
_SENTENCE = re.compile(r"Of the \d+ rules that VIRTIO.*?each\s+has\s+a\s+test", re.S)


@dataclass(frozen=True)
class Rule:
    """A row of the table. `needs`: features, all of them; of `A|B` either."""

    name: str
    strength: str
    section: str
    needs: str
    text: str

    @property
    def binding(self) -> bool:
        return self.strength.startswith("MUST")

    def lacks(self, supported: Iterable[str]) -> list[str]:
        """What it needs that is not built."""
        have = set(supported)
        return [need for need in self.needs.split() if not have & set(need.split("|"))]


def rules() -> list[Rule]:
    lines = TABLE.read_text().splitlines()[2:]
    return [Rule(*line.split("\t")) for line in lines]


def supported() -> set[str]:
    return {feature.name for feature in SUPPORTED} | BESIDES


# ---- the tests ---------------------------------------------------------------------------------


def marks_in(source: str) -> dict[str, set[str]]:
    """The rules that each test of a module is marked with; a test in a class is Class::test."""
    tree = ast.parse(source)
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    common = _named([values["pytestmark"]], values) if "pytestmark" in values else set()
    found: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            shared = common | _named(node.decorator_list, values)
            found |= {f"{node.name}::{k}": v | shared for k, v in _functions(node, values)}
        else:
            found |= {k: v | common for k, v in _functions(ast.Module([node], []), values)}
    return {test: names for test, names in found.items() if names}


def _functions(
    body: ast.ClassDef | ast.Module, values: dict[str, ast.expr]
) -> Iterator[tuple[str, set[str]]]:
    for node in body.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name, _named(node.decorator_list, values)


def _named(nodes: Iterable[ast.expr], values: dict[str, ast.expr]) -> set[str]:
    """Arguments of every pytest.mark.rule(...) in there, and in module values named there."""
    names: set[str] = set()
    for node in (part for each in nodes for part in ast.walk(each)):
        if isinstance(node, ast.Name) and node.id in values:
            names |= _named([values[node.id]], {})
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rule":
            names |= {ast.literal_eval(argument) for argument in node.args}
    return names


def marks() -> dict[str, set[str]]:
    """The tests of each rule, by path::test; those of the model's own tests among them."""
    found: dict[str, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for test, names in marks_in(path.read_text()).items():
            for name in names:
                found.setdefault(name, set()).add(f"{path.relative_to(TESTS)}::{test}")
    return found


def of_model(test: str) -> bool:
    """Whether it shows that a strict device objects, and nothing of the driver."""
    return test.startswith("test_model_")


def faults(table: list[Rule], tests: dict[str, set[str]], built: set[str]) -> list[str]:
    """What is wrong between the rules, the tests' marks and the features that are built."""
    unknown = tests.keys() - {rule.name for rule in table}
    found = [f"{name} is no rule: {', '.join(tests[name])}" for name in unknown]
    for rule in table:
        holders = {test for test in tests.get(rule.name, ()) if not of_model(test)}
        lacks = rule.lacks(built)
        if lacks and holders:
            found.append(f"{rule.name} needs {', '.join(lacks)}, not built: {', '.join(holders)}")
        if rule.binding and not lacks and not holders:
            found.append(f"{rule.name} ({rule.strength}, {rule.section}) has no test: {rule.text}")
    return sorted(found)


# ---- the page ----------------------------------------------------------------------------------


def summary(table: list[Rule], built: set[str]) -> str:
    binding = [rule for rule in table if rule.binding]
    count = sum(not rule.lacks(built) for rule in binding)
    return (
        f"Of the {len(binding)} rules that VIRTIO gives the driver of a network device with MUST "
        f"or MUST NOT,\n{count} concern what is built here; each has a test"
    )


def page(table: list[Rule], tests: dict[str, set[str]], built: set[str]) -> str:
    parts = [_HEAD.format(summary=summary(table, built) + ".")]
    for area, rows in groupby(table, lambda rule: rule.name[:3]):
        parts.append(f"\n## {AREAS[area]}\n\n{_COLUMNS}")
        parts += [_row(rule, sorted(tests.get(rule.name, ())), built) for rule in rows]
    return "".join(parts)


def _row(rule: Rule, tests: list[str], built: set[str]) -> str:
    lacks = rule.lacks(built)
    cell = _list(test for test in tests if not of_model(test)) or "-"
    if lacks:
        cell = "not built yet: " + ", ".join(need.replace("|", " or ") for need in lacks)
    if model := _list(test for test in tests if of_model(test)):
        cell += f"; *objects:* {model}"
    return f"| {rule.name} | {rule.strength} | {rule.section} | {rule.text} | {cell} |\n"


def _list(tests: Iterable[str]) -> str:
    return ", ".join(f"`{test.replace('.py::', '::')}`" for test in tests)


def readme(text: str, table: list[Rule], built: set[str]) -> str:
    """README with the count as it is."""
    return _SENTENCE.sub(summary(table, built), text)


def main() -> None:
    table, tests, built = rules(), marks(), supported()
    PAGE.write_text(page(table, tests, built))
    README.write_text(readme(README.read_text(), table, built))
    print("\n".join(faults(table, tests, built)) or summary(table, built) + ".")


if __name__ == "__main__":
    main()
