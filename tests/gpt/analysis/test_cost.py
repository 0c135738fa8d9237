"""What a run needs, counted on shapes."""

from gpt.analysis.cost import estimate_cost
from gpt.config import PRESETS


def test_estimates():
    cost = estimate_cost(PRESETS["shakespeare"].model, PRESETS["shakespeare"].train)
    assert cost.n_params == 10_788_929
    assert 2e9 < cost.cache_bytes < 5e9
    assert 1.1e12 < cost.flops < 1.3e12
