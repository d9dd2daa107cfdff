"""The part of `turbort plan` that rests on calibration and on measured kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from turbort.cli import ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from turbort.cli.choose import Choice
    from turbort.job import Job
    from turbort.kernel import Call
    from turbort.models.spec import ModelSpec
    from turbort.pareto import Pareto
    from turbort.plan import Plan
    from turbort.planner import Planner
    from turbort.policy import Evidence

COLUMNS = ("plan", "ms a step", "error", "PSNR", "same error", "same time")


@dataclass
class Evidenced:
    """One `turbort plan`: the model at a size, and the calibration and budget that it is planned with, if any."""

    choice: Choice
    spec: ModelSpec
    job: Job
    batch: int | None
    budget: int | None
    calibration: Path | None

    @cached_property
    def evidence(self) -> Evidence | None:
        from turbort.calibration import Calibration
        from turbort.policy import Evidence

        return Evidence(Calibration.load(self.calibration)) if self.calibration else None

    @cached_property
    def planner(self) -> Planner:
        from turbort.planner import Planner

        return Planner(self.choice.profile, self.choice.registry, self.choice.target)

    @cached_property
    def sites(self) -> list[list[Call]]:
        from turbort.job import samples_per_step
        from turbort.planner import recorded

        full = self.job.resolved(self.spec)
        batch = samples_per_step(self.choice.profile, 1, full) if self.batch is None else self.batch
        size = (full.width or 0, full.height or 0)
        return recorded(self.spec, self.choice.profile, size=size, frames=full.frames or 0, batch=batch)

    def plan(self) -> Plan:
        """The plan; where a run would not fit into the memory budget, the fastest one whose weights are that much smaller."""
        from turbort.cli.plan import make
        from turbort.memory import MARGIN, fastest, forecast

        made = make(self.choice, self.spec, self.job, batch=self.batch, evidence=self.evidence)
        if self.budget is None or self.evidence is None or "predicted" not in made.header:
            return made
        profile = self.choice.profile
        needed = forecast(made, self.spec, profile, fastest(made, self.spec, profile.memory.vae_tile)).needed
        if needed <= self.budget:
            return made
        smaller = replace(self.evidence, weights=max(0.0, self._weights(made) - (needed - self.budget) / MARGIN))
        try:
            return make(self.choice, self.spec, self.job, batch=self.batch, evidence=smaller)
        except InputError as error:
            ui.warn(f"weights stay as large as they are, and the run saves memory elsewhere: {error.message}")
            return made

    def _weights(self, made: Plan) -> float:
        from turbort.policy import problem_of

        assert self.evidence is not None
        problem = problem_of(self.planner, self.sites, self.evidence)
        return math.fsum(site.memory[made[path].precision] for path, site in problem.sites.items())

    def check_frontier(self, plot: Path | None) -> None:
        """InputError now for a frontier that cannot be made or drawn."""
        from turbort.cli.pareto_plot import check_plot

        if self.evidence is None:
            raise InputError(
                "a frontier needs to know what precisions cost", fix="add --calibration FILE from `turbort calibrate`"
            )
        if plot is not None:
            check_plot(plot)

    def frontier(self) -> Pareto:
        """The frontier with the chosen point and the uniform choices."""
        from turbort.pareto import pareto
        from turbort.policy import problem_of

        assert self.evidence is not None
        assert self.evidence.calibration is not None
        calibration = self.evidence.calibration
        error = calibration.error_for(self.choice.profile.planned_psnr)
        return pareto(problem_of(self.planner, self.sites, self.evidence), calibration, error, self.evidence.weights)

    def show(self, plane: Pareto, plot: Path | None) -> None:
        """The plane, and its rows."""
        from turbort.cli.pareto_plot import draw, save

        ui.result(draw(plane))
        rows = [row.row() for row in plane.uniform] + [plane.chosen.row()]
        ui.table(rows, COLUMNS, title="beside uniform linears: the planner at the same error, and in the same time")
        if plot is not None:
            save(plane, plot, f"{self.spec.name}, {self.choice.profile.name}")
            ui.say(f"drawn to {plot}", "good")

    def measure(self) -> None:
        """Time the kernels of this plan's sites on the device, and keep the times for this and later plans."""
        from turbort.io import atomic_text
        from turbort.kernel_times import KernelTimes, times_file
        from turbort.measure import measure

        device = self.choice.target.device
        if device.torch_name == "meta":
            raise InputError("--measure needs a device that computes", fix="leave out `--on null`")

        def told(done: int, total: int, what: str) -> None:
            if ui.interactive() and done % 10 == 0:
                ui.say(f"{done} of {total}: {what}", "quiet")

        rows = measure(self.planner, self.sites, told)
        path = times_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_text(path, KernelTimes.load(path).joined(rows).dumps())
        ui.say(f"measured {len(rows)} kernels on {device.name}; times kept in {path}")
