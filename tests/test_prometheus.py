"""Prometheus sees what happens in stores, through its own client library and its own parser."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stores import MakeStore, StartPython, lock_free_only

from shmstore import Store

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.openmetrics import exposition as openmetrics  # noqa: E402
from prometheus_client.openmetrics import parser as openmetrics_parser  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from shmstore.integrations.prometheus import StoreCollector, start_http_server  # noqa: E402

pytestmark = lock_free_only

Samples = dict[tuple[str, str], float]


def _samples(families: Iterator[Any]) -> Samples:
    return {
        (sample.name, sample.labels["store"]): sample.value
        for family in families
        for sample in family.samples
    }


def scrape(*stores: Store | str) -> Samples:
    """Return what a scrape of a registry of these stores gives, as Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(*stores))
    text = generate_latest(registry).decode()
    return _samples(text_string_to_metric_families(text))


def test_samples_are_those_of_metrics_and_stats(make_store: MakeStore) -> None:
    """Counters end in _total, sizes are bytes, times are seconds."""
    store = make_store("shown")
    ref = store.put(np.zeros(1000), key="a")
    store.put("word")
    view = store.get(ref)
    store.delete("a")
    samples = scrape(store)
    assert samples["shmstore_up", "shown"] == 1
    assert samples["shmstore_puts_total", "shown"] == 2
    assert samples["shmstore_gets_total", "shown"] == 1
    assert samples["shmstore_got_bytes_total", "shown"] == 8000
    assert samples["shmstore_deletes_total", "shown"] == 1
    assert samples["shmstore_lock_wait_seconds_total", "shown"] == 0
    assert samples["shmstore_capacity_bytes", "shown"] == 4 << 20
    assert samples["shmstore_used_bytes", "shown"] == store.stats().used
    assert samples["shmstore_pinned_bytes", "shown"] == 8000
    assert samples["shmstore_objects", "shown"] == 1
    assert samples["shmstore_clients", "shown"] == 1
    del view


def test_families_follow_the_conventions(make_store: MakeStore) -> None:
    """The stricter parser of OpenMetrics takes them; each has a help text and a type."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(make_store("one"), make_store("two")))
    text = openmetrics.generate_latest(registry).decode()
    families = list(openmetrics_parser.text_string_to_metric_families(text))
    assert {family.type for family in families} == {"counter", "gauge"}
    assert all(family.name.startswith("shmstore_") for family in families)
    assert all(family.documentation.endswith(".") for family in families)
    stores = [[sample.labels["store"] for sample in family.samples] for family in families]
    assert stores == [["one", "two"]] * len(families)


def test_all_stores_of_the_root_are_found_when_asked(make_store: MakeStore) -> None:
    """Also those that were made after the collector."""
    registry = CollectorRegistry()
    registry.register(StoreCollector())
    assert generate_latest(registry).decode().count("shmstore_up{") == 0
    for name in ("one", "two"):
        make_store(name).put(1)
    samples = _samples(text_string_to_metric_families(generate_latest(registry).decode()))
    assert {store for _, store in samples} == {"one", "two"}
    assert samples["shmstore_puts_total", "one"] == 1


def test_visit_of_a_store_does_not_change_it(store: Store, start_python: StartPython) -> None:
    """The collector is no client of it, and does not keep it from going with its last one."""
    other = start_python(
        """
        import shmstore
        store = shmstore.Store.open("opened", capacity="1MiB")
        store["a"] = 1
        print("there", flush=True)
        input()
        """
    )
    assert other.hear() == "there"
    for _ in range(3):
        assert scrape("opened")["shmstore_clients", "opened"] == 1
        assert scrape()["shmstore_objects", "opened"] == 1
    other.say()
    other.end()
    assert ("shmstore_up", "opened") not in scrape()


def test_store_that_cannot_be_read_is_down(make_store: MakeStore) -> None:
    """It has no other sample; the others are not affected."""
    store = make_store("good")
    (store.path.with_name("bad")).mkdir(mode=0o700)
    samples = scrape()
    assert samples["shmstore_up", "bad"] == 0
    assert [name for name, label in samples if label == "bad"] == ["shmstore_up"]
    assert samples["shmstore_up", "good"] == 1
    assert scrape("missing") == {("shmstore_up", "missing"): 0}
    store.path.with_name("bad").rmdir()


def test_closed_store_has_no_samples(make_store: MakeStore) -> None:
    """A collector may outlive the handles that it was given."""
    store = make_store("one")
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    store.close()
    assert "store=" not in generate_latest(registry).decode()


def test_two_collectors_of_one_registry_are_refused(store: Store) -> None:
    """The registry is told the names, and says that they come twice."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(store))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(StoreCollector())


def test_server_gives_what_prometheus_reads(make_store: MakeStore) -> None:
    """On a free port of this machine, until it is closed."""
    make_store("served").put(1)
    with start_http_server() as exporter:
        url = f"http://127.0.0.1:{exporter.port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
    samples = _samples(text_string_to_metric_families(text))
    assert samples["shmstore_puts_total", "served"] == 1
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=30)
