"""docs/families.md is what the specs say."""

from __future__ import annotations

from pathlib import Path

from engine.models.fallback_families import KNOWN_TO_BE_REFUSED, KNOWN_TO_WORK
from engine.models.families import FAMILIES
from engine.models.families_table import page

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python -m engine.models.families_table > docs/families.md"
    )


def test_the_page_tells_native_families_from_others() -> None:
    assert not FAMILIES.keys() & {*KNOWN_TO_WORK, *KNOWN_TO_BE_REFUSED}
    native, others = PAGE.read_text(encoding="utf-8").split("## By the transformers fallback")
    for name in FAMILIES:
        assert f"| `{name}` |" in native
    for name in (*KNOWN_TO_WORK, *KNOWN_TO_BE_REFUSED):
        assert f"`{name}`" in others
