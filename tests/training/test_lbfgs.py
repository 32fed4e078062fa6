"""L-BFGS in the metric that Adam has found."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mace_polmp.training.lbfgs import PreconditionedLBFGS

SETTINGS = {"max_iter": 20, "history_size": 50, "line_search_fn": "strong_wolfe"}


class Problem:
    """Residuals that depend on one of two tensors a hundred times more, and not linearly."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        sizes = torch.logspace(0.0, -1.5, 60, dtype=torch.float64)
        self._maps = (0.01 * random(60, 60) * sizes, random(60, 60) * sizes)
        self._wanted = random(60)
        self.parameters = [torch.nn.Parameter(random(60)) for _ in range(2)]
        self.evaluations = 0

    def loss(self) -> Tensor:
        soft, stiff = self.parameters
        values = self._maps[0] @ soft + (self._maps[1] @ stiff).square() - self._wanted
        return values.square().mean()

    def closure(self, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        def evaluate() -> Tensor:
            self.evaluations += 1
            optimizer.zero_grad(set_to_none=True)
            loss = self.loss()
            loss.backward()
            return loss

        return evaluate

    def adam(self, steps: int) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.parameters, lr=1e-3, amsgrad=True)
        for _ in range(steps):
            self.closure(optimizer)()
            optimizer.step()
        self.evaluations = 0
        return optimizer


def minimized(kind: type[torch.optim.LBFGS], evaluations: int) -> float:
    problem = Problem()
    before = problem.adam(20)
    extra = {"before": before} if kind is PreconditionedLBFGS else {}
    optimizer = kind(problem.parameters, **SETTINGS, **extra)
    while problem.evaluations < evaluations:
        optimizer.step(problem.closure(optimizer))
    return problem.loss().item()


def test_is_better_than_without_the_metric() -> None:
    assert minimized(PreconditionedLBFGS, 100) < 0.1 * minimized(torch.optim.LBFGS, 100)


def test_without_an_optimizer_before() -> None:
    problem = Problem()
    first = problem.loss().item()
    optimizer = PreconditionedLBFGS(problem.parameters, **SETTINGS)
    for _ in range(3):
        optimizer.step(problem.closure(optimizer))
    assert problem.loss().item() < 1e-2 * first


def test_returns_the_loss_before_the_step() -> None:
    problem = Problem()
    optimizer = PreconditionedLBFGS(problem.parameters, **SETTINGS)
    before = problem.loss().item()
    assert optimizer.step(problem.closure(optimizer)).item() == pytest.approx(before, rel=1e-12)


def test_goes_on_from_its_state() -> None:
    problem = Problem()
    optimizer = PreconditionedLBFGS(problem.parameters, problem.adam(5), **SETTINGS)
    optimizer.step(problem.closure(optimizer))
    again = Problem()
    with torch.no_grad():
        for mine, its in zip(again.parameters, problem.parameters, strict=True):
            mine.copy_(its)
    restarted = PreconditionedLBFGS(again.parameters, **SETTINGS)
    restarted.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step(problem.closure(optimizer))
    restarted.step(again.closure(restarted))
    for mine, its in zip(again.parameters, problem.parameters, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


def test_line_search_turns_back_from_no_number() -> None:
    x = torch.nn.Parameter(torch.tensor([-30.0, 2.0], dtype=torch.float64))
    optimizer = PreconditionedLBFGS([x], **SETTINGS)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -torch.log(2.0 - x[0]) - 5.0 * x[0] + (x[0] + x[1]).square()  # none from 2 on
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    torch.testing.assert_close(x.detach(), x.new_tensor([1.8, -1.8]), rtol=0.0, atol=1e-4)


def test_parameters_without_gradient_stay() -> None:
    problem = Problem()
    unused = torch.nn.Parameter(torch.ones(7, dtype=torch.float64))
    problem.parameters.append(unused)
    problem.loss = lambda p=problem: p.parameters[1].square().sum()  # type: ignore[method-assign]
    optimizer = PreconditionedLBFGS(problem.parameters, problem.adam(3), **SETTINGS)
    optimizer.step(problem.closure(optimizer))
    assert torch.equal(unused, torch.ones_like(unused))
    assert problem.loss().item() < 1e-12
