"""Fingerprints and the reservoir: by content, so independent of order and workers."""

from itertools import permutations

import numpy as np
import torch

from tersor.observers.sample import KEYS, fingerprints_of, keys_of, sample_of, strided


def rows(n, seed=0, width=10):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_keys_tell_rows_apart_and_know_them_again():
    x = rows(5000)
    assert len(set(keys_of(x).tolist())) == 5000
    assert np.array_equal(keys_of(x), keys_of(x.clone()))
    changed = x.clone()
    changed[:, 3] += 1e-3
    assert not np.isin(keys_of(changed), keys_of(x)).any()
    assert not np.isin(keys_of(x[:, torch.randperm(10)]), keys_of(x)).any()


def test_every_row_has_the_same_chance():
    # Rows that differ by one only, the worst for a weak hash.
    keys = keys_of(torch.arange(20_000.0).reshape(-1, 1)).astype(np.float64) / 2**64
    assert abs(keys.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(keys, np.arange(20_000))[0, 1]) < 0.03


def test_sample_is_the_same_in_any_order_and_grouping():
    parts = [sample_of(rows(20, seed), 7) for seed in range(3)]
    whole = sample_of(torch.cat([rows(20, seed) for seed in range(3)]), 7)
    for a, b, c in permutations(parts):
        for merged in (a.merged(b).merged(c), a.merged(b.merged(c))):
            assert merged.keys == whole.keys
            assert torch.equal(merged.stacked(), whole.stacked())


def test_sample_keeps_whole_distinct_rows_and_owns_them():
    x = rows(4).reshape(4, 2, 5)
    s = sample_of(torch.cat((x, x)), 6)
    assert len(s.rows) == 4
    assert s.rows[0].shape == (2, 5)
    kept = s.stacked().clone()
    x.zero_()
    assert torch.equal(s.stacked(), kept)


def test_seed_chooses_another_sample():
    assert sample_of(rows(100), 5, seed=1).keys != sample_of(rows(100), 5, seed=2).keys
    first, second = (set(map(tuple, sample_of(rows(100), 5, s).stacked().tolist())) for s in (1, 2))
    assert first != second


def test_repetitions_are_counted_exactly_while_they_fit():
    x = rows(300)
    prints = fingerprints_of(x).merged(fingerprints_of(x[:100]))
    assert prints.repeated == 0.25
    assert fingerprints_of(x).repeated == 0


def test_repetitions_of_many_rows_are_estimated():
    prints = fingerprints_of(rows(1, 99))
    for seed in range(12):
        prints = prints.merged(fingerprints_of(rows(500, seed % 6)))
    assert len(prints.keys) == KEYS
    assert abs(prints.repeated - 0.5) < 0.01


def test_stride_visits_all_columns_and_channels_alike():
    shape = (6, 28, 28)
    flat = torch.arange(6 * 28 * 28.0).reshape(1, -1)
    taken = strided(flat, 500)[0].long()
    assert 300 <= len(taken) <= 500
    for index in (taken % 28, taken // 28 % 28, taken // 784):
        counts = torch.bincount(index)
        assert counts.min() >= 0.7 * counts.max()
    assert np.prod(shape) == flat.numel()
