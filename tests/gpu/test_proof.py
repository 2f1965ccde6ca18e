"""The parts of `gemfleet bench gpu-proof` that prove, at full size on this machine's GPU."""

from __future__ import annotations

import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.gpu_proof.registry import PARTS, SPEED
from gemfleet.benchmarks.shared.record import Record, case_file, read_record

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

PROOFS = [name for name in PARTS if name not in SPEED]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """All parts proved in turn, in processes of their own."""
    out = tmp_path_factory.mktemp("proof")
    main(["gpu-proof", "--device", "cuda", "--parts", ",".join(PROOFS), "--minutes", "25", "--out", str(out)])
    return {name: read_record(out / case_file("gpu-proof", name)) for name in PROOFS}


@pytest.mark.parametrize("part", PROOFS)
def test_the_part_holds_on_this_gpu(records: dict[str, Record], part: str) -> None:
    found = records[part].results
    failed = [check for check in found["checks"] if check["verdict"] == "failed"]
    assert found["verdict"] in ("passed", "skipped"), (found["error"], failed)
