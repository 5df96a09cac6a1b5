"""What is ordered: each thing once, so many of it."""

import pytest
from pydantic import BaseModel, ValidationError

from services.contracts import MAX_LINES, MAX_QUANTITY, MAX_SKU, Lines


class Cart(BaseModel):
    lines: Lines = ()


def lines(*pairs: tuple[object, object]) -> dict[str, object]:
    return {"lines": [{"sku": sku, "quantity": quantity} for sku, quantity in pairs]}


@pytest.mark.parametrize("sku", ["lamp", "desk lamp", "Ω-7", "a" * MAX_SKU, "4711"])
@pytest.mark.parametrize("quantity", [1, MAX_QUANTITY])
def test_a_line_survives_json(sku: str, quantity: int) -> None:
    cart = Cart.model_validate(lines((sku, quantity)))
    assert Cart.model_validate_json(cart.model_dump_json()) == cart


def test_spaces_around_a_sku_mean_nothing() -> None:
    (line,) = Cart.model_validate(lines((" lamp ", 1))).lines
    assert line.sku == "lamp"


@pytest.mark.parametrize("sku", ["", " ", "a/b", "a\x00b", "a\nb", "a" * (MAX_SKU + 1), 7, None])
def test_what_is_no_sku_is_refused(sku: object) -> None:
    with pytest.raises(ValidationError, match="sku"):
        Cart.model_validate(lines((sku, 1)))


@pytest.mark.parametrize("quantity", [0, -1, MAX_QUANTITY + 1, "2", 1.5, True, None])
def test_what_is_no_quantity_is_refused(quantity: object) -> None:
    with pytest.raises(ValidationError, match="quantity"):
        Cart.model_validate(lines(("lamp", quantity)))


def test_two_lines_of_one_thing_are_refused() -> None:
    with pytest.raises(ValidationError, match="each SKU has one line"):
        Cart.model_validate(lines(("lamp", 1), ("lamp ", 2)))


def test_there_is_a_limit_to_lines() -> None:
    pairs = [(f"lamp {number}", 1) for number in range(MAX_LINES + 1)]
    assert len(Cart.model_validate(lines(*pairs[1:])).lines) == MAX_LINES
    with pytest.raises(ValidationError, match="at most"):
        Cart.model_validate(lines(*pairs))
