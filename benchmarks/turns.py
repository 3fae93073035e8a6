"""Runners take turns; one that fails is out, with its reason, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from benchmarks import output
from benchmarks.agreement import Compared, compare
from benchmarks.available import who_can_run
from benchmarks.jobs import AdapterMethod, DeviceName
from benchmarks.processes import RunnerFailedError
from benchmarks.records import Agreement
from embedtune.errors import RunError

Record = TypeVar("Record")


class Runner(Protocol):
    """What `processes.Runners` does here."""

    def run(self, action: str, runner: str, record: type[Record]) -> Record: ...


@dataclass
class Participants:
    """Those who still take part, and what became of the others."""

    names: list[str]
    """Who takes turns, in this order."""
    skipped: dict[str, str]
    """Who can't run here, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Who failed, and at what and why."""
    compared: list[Compared] = field(default_factory=list)
    """Which of them compute the same."""

    @classmethod
    def of(
        cls, named: Sequence[str], otherwise: Sequence[str], device: DeviceName, *, method: AdapterMethod = "lora"
    ) -> Participants:
        """Those who can run here, see `who_can_run`; says who can't, and why."""
        able, skipped = who_can_run(named, otherwise, device, method=method)
        for name, reason in skipped.items():
            output.say(f"{name} skipped: {reason}")
        return cls(able, skipped)

    def take_turns(self, runners: Runner, action: str, record: type[Record]) -> Iterator[tuple[str, Record]]:
        """Each in turn does something; what those come to who don't fail.

        Raises:
            UserError: what the user gave can't be used.
            RunError: nobody is left.
        """
        for name in list(self.names):
            found = self._let(runners, action, name, record)
            if found is not None:
                yield name, found
        if not self.names:
            raise RunError("every runner failed.")

    def _let(self, runners: Runner, action: str, name: str, record: type[Record]) -> Record | None:
        try:
            return runners.run(action, name, record)
        except RunnerFailedError as error:
            self.names.remove(name)
            self.failed[name] = f"{action}: {error.reason}"
            output.say(f"{name} failed at {self.failed[name]}")
            output.fail(str(error))
            return None

    def agree(self, runners: Runner, action: str) -> None:
        """Compare what embedtune's runners compute with what each other does, and say so."""
        found = [agreement for _, agreement in self.take_turns(runners, action, Agreement)]
        for agreement in found:
            output.say(f"{agreement.runner} computes in {agreement.precision}, weights in {agreement.weights}")
        self.compared = compare(found)
        for compared in self.compared:
            both = f"{compared.one} and {compared.other}"
            output.say(f"agreed: {both}: {compared.said}" if compared.agree else _refusal(both, compared.said))

    @property
    def disagreeing(self) -> list[frozenset[str]]:
        """Pairs of runners that may not be compared."""
        return [frozenset((compared.one, compared.other)) for compared in self.compared if not compared.agree]

    def complain(self) -> None:
        """Raise for what went wrong, once all the rest is told.

        Raises:
            RunError: a runner failed, or two don't compute the same.
        """
        wrong = [f"{name} failed at {reason}" for name, reason in self.failed.items()]
        wrong += [_refusal(f"{c.one} and {c.other}", c.said) for c in self.compared if not c.agree]
        if wrong:
            raise RunError("\n".join(wrong))


def _refusal(both: str, said: str) -> str:
    return f"{both} don't compute the same on the first batch, so they are not compared: {said}"
