"""icecore and PyTorch in one process: any order of imports, one number of threads, workers of a DataLoader."""

import numpy as np
import pytest
from helpers import run_python
from test_runtime import has_gomp, needs_openmp

import icecore

torch = pytest.importorskip("torch")

ROWS = np.random.default_rng(0).standard_normal((40, 2, 300, 16)).astype(np.float32)
ORDERS = ["import torch, icecore", "import icecore, torch", "import icecore.torch"]
#: An array of icecore's and a tensor of torch's, by both's threads.
USE = """
{imports}
import numpy as np, torch
torch.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((2, 300, 16)).astype(np.float32)
for _ in range(3):
    own = torch.from_numpy(icecore.attention(x, x, x, causal=True, num_threads=2))
    other = torch.nn.functional.scaled_dot_product_attention(*[torch.from_numpy(x)[None]] * 3, is_causal=True)[0]
    assert torch.exp(torch.ones(3000000)).isfinite().all()
print(float((own - other).abs().max()) < 1e-5)
"""


@pytest.mark.parametrize("imports", ORDERS)
def test_either_may_be_imported_first(imports):
    done = run_python(USE.format(imports=imports))
    assert done.stdout == "True\n", done.stderr


@needs_openmp
@pytest.mark.skipif(not has_gomp(), reason="torch has an OpenMP of its own")
@pytest.mark.parametrize("imports", ORDERS)
def test_the_number_of_threads_that_torch_is_told_is_followed(imports):
    """Unless icecore was told another one."""
    done = run_python(f"""
{imports}
import torch
usable = icecore.get_num_threads()
for count in (1, 2, 3):
    torch.set_num_threads(count)
    print(icecore.get_num_threads() == min(count, usable), end=" ")
torch.set_num_threads(1)
icecore.set_num_threads(2)
print(icecore.get_num_threads())
""", OMP_NUM_THREADS="")
    assert done.stdout == "True True True 2\n", done.stderr


class Attended(torch.utils.data.Dataset):
    """Rows through attention, in whichever process asks for them."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, i):
        return icecore.attention(ROWS[i], ROWS[i], ROWS[i], causal=True)


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_loader_compute_what_the_process_does(start):
    """After both have used their threads here. A worker that hangs is an error after a minute."""
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"needs {start}")
    expected = icecore.attention(ROWS, ROWS, ROWS, causal=True, num_threads=2)
    torch.exp(torch.ones(3000000))
    loader = torch.utils.data.DataLoader(Attended(), batch_size=10, num_workers=2, multiprocessing_context=start, timeout=60)
    np.testing.assert_allclose(torch.cat(list(loader)).numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(icecore.attention(ROWS, ROWS, ROWS, causal=True, num_threads=2), expected)
