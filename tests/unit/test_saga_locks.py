"""What is locked has a name, and no two things have the same one."""

from hypothesis import given
from hypothesis import strategies as st

from relay.saga.locks import resource_of

names = st.text(alphabet="ab/%2F5", max_size=6)


def test_a_name_is_the_type_and_the_id() -> None:
    assert resource_of(("order", 7)) == "order/7"
    assert resource_of(("order", "2026/12 50%")) == "order/2026/12 50%"


@given(names, names, names, names)
def test_two_things_have_two_names(a_type: str, an_id: str, other_type: str, other_id: str) -> None:
    same = (a_type, an_id) == (other_type, other_id)
    assert (resource_of((a_type, an_id)) == resource_of((other_type, other_id))) is same


def test_a_slash_in_the_type_is_none_in_the_id() -> None:
    assert resource_of(("a/b", "c")) != resource_of(("a", "b/c"))
    assert resource_of(("a/b", "c")) != resource_of(("a%2Fb", "c"))
