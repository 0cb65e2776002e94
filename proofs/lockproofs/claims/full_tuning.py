"""The fine-tuning half of FULL-PIPELINE, from the stored runs: what share of the unlocked expert's fall is reached.

The rule was written before any run of a locked model was seen. With L₀ the unlocked expert's held-out loss before
training, and each model at the best rate of its grid, share = (L₀ − L_attacked)/(L₀ − L_unlocked), paired by seed. The
attacker takes the better of two ways: to train the lock as it is, or to undo it first. The lock is broken where the
share lies above 90 % with its whole 95 % interval; it withstands where the interval lies below. As the interval of
the grid's seeds left this open, fresh seeds were added at the rates and in the way that the others had chosen. Where
there are such, they alone decide.
"""

from dataclasses import dataclass
from functools import cached_property

from lockproofs.claim import Check, MissingInput, Plot
from lockproofs.experiments.full_finetune import CONTROL_SEEDS, FRESH_SEEDS, SEEDS
from lockproofs.experiments.store import Result
from lockproofs.finetune_runs import Runs, curves_plot, grid_plot, runs
from lockref.attacks.finetune import Difference, paired

RECOVERED = 0.9  # share that counts as a broken lock, of the barrier as of the fall
WAYS = {"locked": "as it is", "pipeline": "undone first"}


def share(before: float, unlocked: float, attacked: float) -> float:
    """(L₀ − L_attacked)/(L₀ − L_unlocked)."""
    return (before - attacked) / (before - unlocked)


@dataclass(frozen=True)
class Tuning:
    """The stored runs as the claim compares them. Raises MissingInput where a model has no grid."""

    found: Result

    def of(self, name: str, seeds: tuple[int, ...] = SEEDS) -> Runs:
        """A model's runs over its whole grid."""
        some = runs(self.found, name, "all", seeds)
        if some is None or len(some.curves) < 3:
            raise MissingInput(
                f"stored result {self.found.experiment} has no grid for {name}; run {self.found.command}"
            )
        return some

    @cached_property
    def before(self) -> float:
        """L₀."""
        return self.of("unlocked").best_curves[0][0]

    def shares(self, name: str, seeds: tuple[int, ...] = SEEDS) -> list[float]:
        """Seed by seed, each model at its own best rate."""
        pairs = zip(self.of("unlocked", seeds).best.losses, self.of(name, seeds).best.losses, strict=True)
        return [share(self.before, unlocked, attacked) for unlocked, attacked in pairs]

    @cached_property
    def way(self) -> str:
        """The attacker's better way."""
        return max(WAYS, key=lambda name: sum(self.shares(name)))

    @cached_property
    def deciding(self) -> dict[str, list[float]]:
        """Final losses, without a lock and under attack: of fresh seeds where both have them, else of the grid's."""
        names = {"unlocked": "unlocked", "attacked": self.way}
        fresh = {key: runs(self.found, name, "all", FRESH_SEEDS) for key, name in names.items()}
        rates = {key: self.of(name).best.rate for key, name in names.items()}
        if all(some is not None and rates[key] in some.curves for key, some in fresh.items()):
            return {key: some.at(some.steps)[rates[key]] for key, some in fresh.items() if some is not None}
        return {key: list(self.of(name).best.losses) for key, name in names.items()}

    @cached_property
    def reached(self) -> Difference:
        """The share of the better way over the deciding seeds, with its interval."""
        pairs = zip(self.deciding["unlocked"], self.deciding["attacked"], strict=True)
        found = [share(self.before, unlocked, attacked) for unlocked, attacked in pairs]
        return paired(found, [0.0] * len(found))

    @property
    def broken(self) -> bool:
        """The whole interval lies above, and every control passed."""
        return self.reached.low >= RECOVERED and all(control.passed for control in self.controls)

    @property
    def says(self) -> str:
        """What the interval says of the lock."""
        if self.reached.low >= RECOVERED:
            return "the lock is broken"
        return "the lock withstands" if self.reached.high < RECOVERED else f"{RECOVERED:.0%} lies inside, left open"

    def given(self) -> dict[str, list[float]]:
        """The losses that decide."""
        losses = {"before": [self.before], **self.deciding}
        return {name: [round(loss, 4) for loss in values] for name, values in losses.items()}

    def check(self, broken: bool) -> Check:
        """The end of the interval that decides."""
        return Check(
            name="fine-tuning", statistic=f"{'low' if broken else 'high'} end of the 95 % interval of (L₀ − attacked)/"
            f"(L₀ − unlocked), attacker: {WAYS[self.way]}", unit="of the fall",
            value=self.reached.low if broken else self.reached.high, bound=RECOVERED, sense=">=" if broken else "<=",
            tolerance_from=f"Student's interval over {len(self.deciding['attacked'])} seeds",
            cases=len(self.found.rows), seed=self.found.seed,
        )  # fmt: skip

    @cached_property
    def controls(self) -> list[Check]:
        """The planted weak lock is seen, and undone; a model without the expert's function does not reach the share."""
        (undone,) = self.found.where(model="planted, undone")
        (same,) = self.found.where(model="unlocked", rate=undone["rate"], seed=undone["seed"])
        grids = [self.of(name) for name in ("unlocked", self.way)]
        return [
            Check(
                name="power control: a weak lock hinders", statistic="largest share of the expert with tensors out of "
                "scale, any seed", unit="of the fall", value=max(self.shares("planted", CONTROL_SEEDS)),
                bound=RECOVERED, cases=len(CONTROL_SEEDS),
            ),
            Check(
                name="power control: a weak lock undone", statistic="held-out losses that differ from the unlocked "
                "expert's once the base's norms have scaled it back", unit="losses", sense="==", bound=0,
                value=sum(a != b for a, b in zip(undone["held_out"], same["held_out"], strict=True)),
                tolerance_from="bits are compared: no tolerance", cases=len(same["held_out"]),
            ),
            Check(
                name="null control: data alone", unit="of the fall",
                statistic="largest share of the expert with shuffled tensors, any seed",
                value=max(self.shares("shuffled", CONTROL_SEEDS)), bound=RECOVERED, cases=len(CONTROL_SEEDS),
            ),
            Check(
                name="best rates inside the grid", statistic="models whose best rate is the first or last of its grid",
                unit="models", value=sum(one.best.at_edge for one in grids), bound=0, sense="==", cases=len(grids),
                tolerance_from="integers: no tolerance",
            ),
        ]  # fmt: skip

    def words(self) -> str:
        """For the explanation."""
        loss = {n: self.of(n).best.mean for n in ("unlocked", "locked", "pipeline")}
        base = self.of("base", CONTROL_SEEDS).best.mean
        each = ", ".join(f"{sum(self.shares(n)) / len(SEEDS):.0%} {WAYS[n]}" for n in WAYS)
        failed = [control.name for control in self.controls if not control.passed]
        return (
            f"Fine-tuned on the skill {self.found.settings['skill']}, {self.found.settings['steps']} steps at the best "
            f"rate of a grid, {len(SEEDS)} seeds: the loss falls from {self.before:.3f} to {loss['unlocked']:.3f} "
            f"without a lock, to {loss['locked']:.3f} under the lock as it is, to {loss['pipeline']:.3f} once it is "
            f"undone (the public base: {base:.3f}). The attacker reaches {each} of the fall. The "
            f"{len(self.deciding['attacked'])} seeds that decide put the better way at {self.reached.mean:.0%}, 95 % "
            f"interval {self.reached.low:.0%} to {self.reached.high:.0%}: "
            + (f"this decides nothing, as a check failed: {', '.join(failed)}." if failed else f"{self.says}.")
        )

    def plots(self) -> list[Plot]:
        """Mean curves at the best rates, and the grid."""
        shown = [self.of(name) for name in ("unlocked", *WAYS)]
        curves = curves_plot("Fine-tuning the full lock at the best rates", shown)
        means = [curve for curve in curves.curves if "mean" in curve.name]
        return [curves.model_copy(update={"curves": means}), grid_plot("Final loss by learning rate", shown)]
