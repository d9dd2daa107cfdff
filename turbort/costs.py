"""What a call costs at a precision: the measured table where it has every candidate of a site, else the device's roofline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from turbort import roofline
from turbort.backend import Device
from turbort.errors import InputError
from turbort.kernel import Call
from turbort.kernel_times import KernelTimes, quantise_shape, shape_class
from turbort.precision import PRECISIONS
from turbort.roofline import Figures

MEASURED, ROOFLINE = "measured", "roofline"


@dataclass(frozen=True)
class Costs:
    """Seconds per call on one device.

    `compute` is the dtype between the ops. Times of one site are comparable with each other because they come from one source.
    """

    device: Device
    compute: str
    figures: Figures | None
    times: KernelTimes = field(default_factory=lambda: KernelTimes({}))

    @staticmethod
    def of(device: Device, arch: tuple[str, ...], compute: str, times: KernelTimes | None = None) -> Costs:
        """Costs on `device`, with the figures of the profile's `arch` where the device stands in for one (null, rehearsals)."""
        table = KernelTimes.load() if times is None else times
        return Costs(device, compute, roofline.figures_for(device.arch, arch), table)

    def source(self, call: Call, precisions: Iterable[str]) -> str:
        """Where this site's times come from. Raises InputError when there is neither a measurement nor a roofline."""
        if all(self._measured(call, name) is not None for name in precisions):
            return MEASURED
        if self.figures is None:
            raise InputError(
                f"there are no figures for {self.device.arch} and not all kernels are measured",
                tried=[f"{call.path}: {shape_class(call)}"],
                fix="measure them on the device with `turbort plan --measure`, or choose `policy: rules`",
            )
        return ROOFLINE

    def seconds(self, call: Call, precision: str, source: str, density: float = 1.0) -> float:
        """One call with x in the precision's own format."""
        if source == MEASURED:
            found = self._measured(call, precision)
            assert found is not None  # `source` has looked
            return found
        assert self.figures is not None
        return roofline.seconds(call, precision, self.figures, compute=self.compute, density=density)

    def quantising(self, call: Call, precision: str) -> float:
        """The pass that brings a linear's x into the precision's own format, where no producer does."""
        scheme = PRECISIONS[precision].emit
        if scheme is None:
            return 0.0
        found = self.times.ms(self.device.backend, self.device.arch, "quantize", scheme, quantise_shape(call))
        if found is not None:
            return found / 1e3
        return roofline.quantising(call, self.figures, self.compute) if self.figures else 0.0

    def _measured(self, call: Call, precision: str) -> float | None:
        ms = self.times.ms(self.device.backend, self.device.arch, call.op, precision, shape_class(call))
        return None if ms is None else ms / 1e3
