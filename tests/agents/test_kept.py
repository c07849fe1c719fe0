from triops.agents.kept import Kept


def test_what_was_kept_longest_ago_makes_room() -> None:
    kept = Kept[str](10)
    kept.keep("a", "first", 4)
    kept.keep("b", "second", 4)
    kept.keep("a", "first again", 4)
    kept.keep("c", "third", 4)
    assert [kept.get(key) for key in "abc"] == ["first again", None, "third"]


def test_what_is_too_large_is_not_kept_and_leaves_no_debt() -> None:
    kept = Kept[str](10)
    kept.keep("a", "large", 11)
    kept.keep("b", "small", 10)
    assert (kept.get("a"), kept.get("b")) == (None, "small")
