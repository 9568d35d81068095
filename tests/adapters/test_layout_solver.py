"""The layout solver in its own process."""

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from tessera.adapters.layout_solver import LayoutSolverProcess
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.layout.solution import solve
from tessera.ports import LayoutPlanningError
from tests.layout_builders import a_fleet, a_mig_service, an_empty_node, layout_problem_of


def a_problem() -> LayoutProblem:
    grounds = [an_empty_node(2)]
    return layout_problem_of(a_fleet(a_mig_service("chat"), mig_nodes=grounds), grounds)


def _stdout_of(pid: int | None) -> Path:
    return Path(f"/proc/{pid}/fd/1").readlink()


async def test_the_worker_answers_as_the_planner_does_and_is_reused() -> None:
    solver, problem = LayoutSolverProcess(), a_problem()
    try:
        assert await solver.solve(problem) == solve(problem)
        worker = solver.worker_pid
        assert await solver.solve(problem) == solve(problem)
        assert solver.worker_pid == worker
        # What the solver prints is no line of the operator's log.
        assert _stdout_of(worker) == Path(os.devnull)
    finally:
        solver.close()


async def test_a_worker_that_is_killed_is_reported_and_replaced() -> None:
    solver, problem = LayoutSolverProcess(), a_problem()
    try:
        await solver.solve(problem)
        assert solver.worker_pid is not None
        os.kill(solver.worker_pid, signal.SIGSTOP)
        waiting = asyncio.create_task(solver.solve(problem))
        await asyncio.sleep(0)
        os.kill(solver.worker_pid, signal.SIGKILL)
        with pytest.raises(LayoutPlanningError, match="exited with code -9"):
            await waiting
        assert await solver.solve(problem) == solve(problem)
    finally:
        solver.close()


async def test_a_worker_that_takes_too_long_is_ended() -> None:
    solver = LayoutSolverProcess(timeout=timedelta(milliseconds=1))
    with pytest.raises(LayoutPlanningError, match=r"exceeded 0\.001 s"):
        await solver.solve(a_problem())
    assert solver.worker_pid is None


async def test_closing_ends_a_worker_in_the_middle() -> None:
    solver, problem = LayoutSolverProcess(), a_problem()
    await solver.solve(problem)
    worker = solver.worker_pid
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    waiting = asyncio.create_task(solver.solve(problem))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
