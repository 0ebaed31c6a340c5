import pytest
from common import peak_memory


@pytest.fixture
def extra(device):
    """Measures the memory of a call after one unmeasured call; gradients of the leaves are dropped before both."""

    def measure(call, *leaves):
        for run in (lambda call: call(), lambda call: peak_memory(call, device)):
            for leaf in leaves:
                leaf.grad = None
            bytes_held = run(call)
        return bytes_held

    return measure
