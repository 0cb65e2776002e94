"""The key-recovery benchmark runs, finds every key at a small size, and refuses a k out of range."""

import json

import pytest
from benchmarks import attention_keys


@pytest.mark.parametrize("family", ["topk", "topk-planes"])
def test_every_key_comes_back_at_a_small_size(family, capsys):
    assert attention_keys.main(["--size", "tiny", "--family", family]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key_heads"] == found["heads_where_a_relative_named_k"] == 4
    assert max(found["worst_key_error"], found["worst_weight_error"]) <= 1e-10
    assert found["seconds"] > 0 and found["peak_rss_bytes"] > 0


def test_the_layers_have_the_published_sizes():
    count, sizes = attention_keys.SIZES["qwen3-0.6b"]
    assert (count, sizes["hidden_size"], sizes["num_attention_heads"]) == (28, 1024, 16)
    assert (sizes["num_key_value_heads"], sizes["head_dim"]) == (8, 128)


def test_a_k_out_of_range_is_named(capsys):
    with pytest.raises(SystemExit):
        attention_keys.main(["--size", "tiny", "--k", "9"])
    assert "an integer from 0 to 8" in capsys.readouterr().err
