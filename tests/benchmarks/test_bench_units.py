"""Units and seeds: the same whatever the shards, and each of its own."""

from __future__ import annotations

import pytest

from t2ictl.benchmarks.runs.units import Pair, Shard, direction_seed, noise_seed, units_of
from t2ictl.benchmarks.suites.base import Item
from t2ictl.errors import BadSetting

ITEMS = [Item(id=f"tune-pair-{number:04d}", category="pair", prompt=f"prompt {number}") for number in range(7)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_share_out_all_units(count: int) -> None:
    units = units_of(ITEMS, range(3), 4)
    taken = [unit.number for index in range(count) for unit in units if Shard(index=index + 1, count=count).takes(unit)]
    assert sorted(taken) == [unit.number for unit in units] == list(range(6))
    assert [len(unit.pairs) for unit in units] == [4, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "2", "a/b", "-1/2", "1/2/3", ""])
def test_bad_shards_are_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="no shard"):
        Shard.read(text)


def test_every_image_has_noise_and_directions_of_its_own() -> None:
    pairs = [Pair(item=item, seed=seed) for item in ITEMS for seed in range(20)]
    seeds = [noise_seed(pair, candidate) for pair in pairs for candidate in range(4)]
    seeds += [direction_seed(pair, arm) for pair in pairs for arm in ("random:a", "random:b")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_seeds_never_change() -> None:
    """Rows made by different versions can be compared only if they start from the same noise."""
    pair = Pair(item=ITEMS[0], seed=0)
    assert (noise_seed(pair), noise_seed(pair, 1), direction_seed(pair, "random:a")) == (
        2255269893,
        1021448932,
        4080343500,
    )
