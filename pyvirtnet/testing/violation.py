"""Violation: the driver broke a rule of the virtio specification."""

from __future__ import annotations

Where = tuple[str | int, ...]  # such as ("queue", 0, "index", 7); put into words only if needed


def words(where: Where) -> str:
    """As text: queue 0, index 7."""
    return ", ".join(f"{what} {which}" for what, which in zip(where[::2], where[1::2], strict=True))


class Violation(AssertionError):
    """The rule, its section in VIRTIO 1.3, and what the driver was seen to do."""

    def __init__(self, rule: str, section: str, seen: str) -> None:
        self.rule, self.section, self.seen = rule, section, seen
        super().__init__(f"{rule} (VIRTIO 1.3, {section}); seen: {seen}")
