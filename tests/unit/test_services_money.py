"""Money is exact, everywhere."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from services.contracts import MAX_AMOUNT, Money, PositiveMoney

amounts = st.decimals(min_value=0, max_value=MAX_AMOUNT, places=2)


class Price(BaseModel):
    amount: Money


class Bill(BaseModel):
    amount: PositiveMoney


@given(amounts)
def test_an_amount_survives_json(amount: Decimal) -> None:
    assert Price.model_validate_json(Price(amount=amount).model_dump_json()).amount == amount


@given(amounts)
def test_an_amount_is_written_with_two_places(amount: Decimal) -> None:
    written = Price(amount=amount).model_dump(mode="json")["amount"]
    assert written == f"{amount:.2f}"
    assert Decimal(written) == amount


@pytest.mark.parametrize(("text", "written"), [("25", "25.00"), ("25.5", "25.50"), ("0", "0.00"), ("007.10", "7.10")])
def test_fewer_places_may_be_read(text: str, written: str) -> None:
    assert Price(amount=text).model_dump(mode="json") == {"amount": written}


WRONG_TEXTS = [
    "1.234",
    "1e3",
    "1E400",
    "NaN",
    "Infinity",
    "-1.00",
    "+1.00",
    "",
    " 1.00",
    "1.00 ",
    "1.00\n",
    "1,00",
    ".5",
]
WRONG_TEXTS += [".5", "1.", "10000000000.00", "9" * 5000, "٢٥", "1_000", "0x10"]
NUMBERS = [25, 25.0, True, None, ["25.00"], float("nan")]
WRONG_DECIMALS = [Decimal(text) for text in ("0.001", "-1", "NaN", "1e10", "Infinity")]


@pytest.mark.parametrize(
    "value",
    [*WRONG_TEXTS, *NUMBERS, *WRONG_DECIMALS],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_exact_amount_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="two decimal places"):
        Price(amount=value)


def test_the_largest_amount_is_read() -> None:
    assert Price(amount="9999999999.99").amount == MAX_AMOUNT


@pytest.mark.parametrize("nothing", ["0", "0.00"])
def test_a_bill_over_nothing_is_refused(nothing: str) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Bill(amount=nothing)


def test_the_schema_says_that_it_is_a_string() -> None:
    for model in (Price, Bill):
        assert model.model_json_schema()["properties"]["amount"]["type"] == "string"
