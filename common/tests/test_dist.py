"""Work divided over ranks covers everything once; two processes gather what one process has, and end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import dist

ROOT = Path(dist.__file__).parent.parent
PROGRAM = """
import sys
from pathlib import Path
import torch
from common import dist
torch.set_num_threads(1)
ranks = dist.setup()
import torch._dynamo
for n in (1, 5, 8):
    for dtype in (torch.float32, torch.int64, torch.bool, torch.uint8):
        full = (torch.arange(n * 3).reshape(n, 3) * 7 % 5).to(dtype)
        assert torch.equal(dist.gather_rows(full[dist.share(n, ranks)], n, ranks), full), (n, dtype)
assert dist.gather_lists(["a", "b"][: ranks.rank + 1], ranks) == ["a", "a", "b"]
assert dist.broadcast(torch.tensor([float(ranks.rank)])).item() == 0.0
parameter = torch.nn.Parameter(torch.zeros(2, 3))
(parameter * (ranks.rank + 1)).sum().backward()
dist.average_gradients([parameter, torch.nn.Parameter(torch.zeros(1))])
assert torch.equal(parameter.grad, torch.full((2, 3), 1.5))
dist.barrier()
if dist.is_main(ranks):
    open(sys.argv[1], "w").write(str(ranks.world_size))
dist.close()
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 7, 64])
def test_shares_cover_everything_once(n, world_size):
    parts = [dist.share(n, dist.Ranks(rank, world_size, rank, torch.device("cpu"))) for rank in range(world_size)]
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_needs_no_group():
    ranks = dist.setup()
    assert ranks == dist.Ranks(0, 1, 0, torch.device("cpu"))
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(dist.gather_rows(rows, 3, ranks), rows)
    assert torch.equal(dist.broadcast(rows), rows)
    assert dist.gather_lists([1, "a"], ranks) == [1, "a"]
    with pytest.raises(ValueError, match="gathers 3 rows, its share is 4"):
        dist.gather_rows(rows, 4, ranks)
    dist.barrier()
    dist.close()


def test_two_processes_gather_the_same_rows(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "program.py"), str(tmp_path / "done")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "2"
