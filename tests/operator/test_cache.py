"""The cache never goes back, and shows a watch that is dead."""

from __future__ import annotations

from typing import Any

from qsg_operator.cache import Cache


def found(name: str, version: int, uid: str = "u", **more: Any) -> dict[str, Any]:
    return {"kind": "Pod", "metadata": {"namespace": "n", "name": name, "uid": uid, "resourceVersion": str(version)}, **more}


def versions(cache: Cache) -> dict[str, str]:
    return {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in cache.of("Pod")}


def test_an_older_one_never_replaces_a_newer_one() -> None:
    cache = Cache()
    told: list[str] = []
    cache.on_change.append(lambda one: told.append(one["metadata"]["resourceVersion"]))
    cache.watched(found("a", 5), deleted=False)
    cache.watched(found("a", 3), deleted=False)
    cache.listed("Pod", [found("a", 4)])
    assert versions(cache) == {"a": "5"} and told == ["5"]


def test_one_that_was_made_again_replaces_the_one_before() -> None:
    cache = Cache()
    cache.watched(found("a", 5), deleted=False)
    cache.watched(found("a", 6), deleted=True)
    cache.watched(found("a", 7, "v"), deleted=False)
    cache.watched(found("a", 5), deleted=True)
    assert versions(cache) == {"a": "7"}


def test_what_a_list_no_longer_has_is_gone() -> None:
    cache = Cache()
    cache.listed("Pod", [found("a", 1), found("b", 2)])
    cache.watched(found("c", 9), deleted=False)
    cache.listed("Pod", [found("b", 2)])
    assert versions(cache) == {"b": "2", "c": "9"}, "c is newer than the list may know"


def test_lists_of_namespaces_do_not_remove_each_others() -> None:
    cache = Cache()
    other = found("b", 2)
    other["metadata"]["namespace"] = "m"
    for _ in range(2):
        cache.listed("Pod", [found("a", 1)], "n")
        cache.listed("Pod", [other], "m")
    assert cache.count("Pod") == 2
    cache.listed("Pod", [], "m")
    assert versions(cache) == {"a": "1"}


def test_a_watch_that_shows_nothing_while_lists_do_is_dead() -> None:
    cache = Cache()
    cache.watched(found("a", 1), deleted=False)
    cache.listed("Pod", [found("a", 1)])
    assert not cache.behind
    cache.listed("Pod", [found("a", 2)])
    assert not cache.behind, "the watch may be a moment late"
    cache.listed("Pod", [found("a", 2)])
    assert cache.behind == {"Pod"}
    cache.watched(found("a", 2), deleted=False)
    cache.listed("Pod", [found("a", 2)])
    assert not cache.behind


def test_one_that_is_gone_never_replaces_the_one_made_after_it() -> None:
    """kopf hands on events of one object in order, those of two objects of one name in any."""
    cache = Cache()
    cache.watched(found("a", 7, "v"), deleted=False)
    cache.watched(found("a", 5, "u"), deleted=False)
    cache.watched(found("a", 6, "u"), deleted=True)
    assert versions(cache) == {"a": "7"}


def test_a_list_that_is_older_than_a_deletion_brings_nothing_back() -> None:
    cache = Cache()
    cache.watched(found("a", 5), deleted=False)
    cache.watched(found("a", 6), deleted=True)
    for _ in range(2):
        cache.listed("Pod", [found("a", 5)])
        assert versions(cache) == {} and not cache.behind
    cache.listed("Pod", [found("a", 7, "v")])
    assert versions(cache) == {"a": "7"}
    cache.listed("Pod", [])
    assert versions(cache) == {} and not cache._deleted


def test_a_list_from_between_two_of_one_name_does_not_remove_the_second() -> None:
    cache = Cache()
    cache.listed("Pod", [found("a", 5, "u")])
    cache.watched(found("a", 6, "u"), deleted=True)
    cache.watched(found("a", 7, "v"), deleted=False)
    cache.listed("Pod", [])
    assert versions(cache) == {"a": "7"}
    for _ in range(2):
        cache.listed("Pod", [found("a", 7, "v")])
    cache.listed("Pod", [])
    assert versions(cache) == {}


def test_a_watch_that_lives_does_not_hide_that_of_another_namespace_that_is_dead() -> None:
    cache = Cache()
    for _ in range(2):
        cache.listed("Pod", [found("a", 1)], "n")
        cache.listed("Pod", [], "m")
    assert cache.behind == {"Pod"}
