"""Two workers that speak by nccl, on a GPU each."""

import pytest
import torch

from cs330ray.training import parallel
from cs330ray.training.device import device
from tests.course.systems.test_parallel import CASES, Ran, ran_as_it_is
from tests.pair import Workers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
]
FIRST = [case for case in CASES if not case.label]


def who() -> tuple[int, str, str]:
    return parallel.workers(), device().type, torch.distributed.get_backend()


@pytest.fixture(scope="module")
def pair():
    with Workers(2, device="cuda") as workers:
        yield workers


def test_workers_on_gpus_speak_by_nccl(pair):
    assert pair.call(who) == [(2, "cuda", "nccl")] * 2


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
def test_two_workers_on_gpus_hold_the_same_bits_and_yield_the_rows_of_one_process_nearly(case, pair, tmp_path):
    one, other = pair.call(ran_as_it_is, case, 3, tmp_path)
    assert one.bits == other.bits
    assert one.rows == other.rows
    alone: Ran = ran_as_it_is(case, 3, tmp_path)
    assert [step for step, _ in one.rows] == [step for step, _ in alone.rows]
    for (_, metrics), (_, others) in zip(one.rows, alone.rows, strict=True):
        for name in metrics:
            assert name.endswith("accuracy") or metrics[name] == pytest.approx(others[name], rel=0.05)
