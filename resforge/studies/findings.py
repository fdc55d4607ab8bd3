"""What a study says: statements that hold or do not, with the numbers that decide, paired by seed."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from resforge.studies.catalog import StudySpec
from resforge.studies.report import Finding, Measured, Series


@dataclass(frozen=True)
class Table:
    """What was measured, by series, and the seeds that each should have."""

    series: Mapping[str, Series]
    seeds: tuple[str, ...]

    def difference(self, more: str, less: str, figure: str) -> dict[str, float]:
        """By seed, a figure of one series less that of another; for the seeds that both have."""
        one, other = (getattr(self.series[name], figure) if name in self.series else None for name in (more, less))
        if one is None or other is None:
            return {}
        return {seed: value - other.values[seed] for seed, value in one.values.items() if seed in other.values}

    def depths(self, kind: str) -> list[int]:
        """The depths of a kind of network, rising."""
        found = (
            item.depth for name, item in self.series.items() if name.startswith(f"{kind}-") and item.role == "training"
        )
        return sorted({depth for depth in found if depth is not None})

    def missing(self, by_seed: Mapping[str, Any]) -> dict[str, str]:
        """A finding's word on the seeds that it lacks, so that one on few of them is not taken for one on all."""
        left = [seed for seed in self.seeds if seed not in by_seed]
        return {"seeds_missing": ", ".join(left)} if left and by_seed else {}


def findings(spec: StudySpec, members: Sequence[Measured], series: Mapping[str, Series]) -> list[Finding]:
    """The study's statements. Those whose numbers are not there yet are left open."""
    table = Table(series, tuple(map(str, spec.seeds)))
    return [*_OF[spec.study](table), *(_starts(members, table) if spec.study == "identity" else ())]


def _numbers(table: Table, difference: Mapping[str, float], agrees: Callable[[float], bool]) -> dict[str, Any]:
    agreeing = sum(agrees(value) for value in difference.values())
    return {
        "difference_by_seed": dict(difference),
        "mean": statistics.fmean(difference.values()) if difference else None,
        "seeds_that_agree": f"{agreeing} of {len(difference)}",
        **table.missing(difference),
    }


def _in_mean(table: Table, statement: str, difference: Mapping[str, float], agrees: Callable[[float], bool]) -> Finding:
    numbers = _numbers(table, difference, agrees)
    mean = numbers["mean"]
    decided = mean is not None and "seeds_missing" not in numbers
    return Finding(statement=f"{statement}, in mean", holds=agrees(mean) if decided else None, numbers=numbers)


def _in_every(table: Table, by_seed: Mapping[str, Any], agrees: Callable[[Any], bool]) -> bool | None:
    """Whether all seeds agree: one that does not settles it, and until then every seed must be there."""
    if not all(map(agrees, by_seed.values())):
        return False
    return None if set(table.seeds) - by_seed.keys() else True


def _below(value: float) -> bool:
    return value < 0


def _not_above(value: float) -> bool:
    return value <= 0


def _above(value: float) -> bool:
    return value > 0


def _degradation(table: Table) -> Iterator[Finding]:
    shallow, *deeper = table.depths("plain")
    for deep in deeper:
        plain = table.difference(f"plain-{deep}", f"plain-{shallow}", "train_error")
        residual = table.difference(f"resnet-{deep}", f"resnet-{shallow}", "train_error")
        yield Finding(
            statement=f"plain-{deep} has a higher training error than plain-{shallow}, in every seed",
            holds=_in_every(table, plain, _above),
            numbers=_numbers(table, plain, _above),
        )
        yield _in_mean(table, f"resnet-{deep} has no higher training error than resnet-{shallow}", residual, _not_above)
        gaps = [statistics.fmean(gap.values()) if gap else None for gap in (plain, residual)]
        yield Finding(
            statement=f"from {shallow} to {deep} layers the residual gap is at most half of the plain one, in mean",
            holds=_at_most_half(*gaps),
            numbers={
                "plain_gap": gaps[0],
                "residual_gap": gaps[1],
                "ratio": gaps[0] / gaps[1] if gaps[0] and gaps[1] and gaps[1] > 0 else None,
                **table.missing({seed: gap for seed, gap in plain.items() if seed in residual}),
            },
        )


def _at_most_half(plain: float | None, residual: float | None) -> bool | None:
    if plain is None or residual is None:
        return None
    return plain > 0 and residual <= plain / 2


def _identity(table: Table) -> Iterator[Finding]:
    series = table.series
    for kind in ("plain", "resnet"):
        [grown] = [name for name in series if name.startswith(f"{kind}-") and name.endswith("-grown")]
        deep = grown.removesuffix("-grown")
        [continued] = [name for name in series if name.startswith(f"{kind}-") and name.endswith("-continued")]
        shallow = continued.removesuffix("-continued")

        def gap(more: str, less: str) -> dict[str, float]:
            return table.difference(more, less, "train_error")

        yield _in_mean(
            table,
            f"{grown}, trained on, has no higher training error than {shallow}",
            gap(grown, shallow),
            _not_above,
        )
        yield _in_mean(
            table,
            f"{grown} has no higher training error than {shallow} trained on for as long",
            gap(grown, continued),
            _not_above,
        )
        if kind == "plain":
            scratch = f"{deep}-scratch"
            yield _in_mean(
                table,
                f"{scratch}, of as many steps in all, ends with a higher training error than {grown}",
                gap(scratch, grown),
                _above,
            )
            yield _in_mean(
                table, f"{scratch} ends with a higher training error than {shallow}", gap(scratch, shallow), _above
            )


def _starts(members: Sequence[Measured], table: Table) -> Iterator[Finding]:
    """Whether grown networks, before their first step, evaluate exactly as the networks that they were grown from."""
    by_place = {(member.series, member.seed): member for member in members if member.role != "reading"}
    series = table.series
    for name, item in series.items():
        if item.role != "start":
            continue
        kind = name.split("-")[0]
        [shallow] = [other.removesuffix("-continued") for other in series
                     if other.startswith(f"{kind}-") and other.endswith("-continued")]  # fmt: skip
        worst: dict[str, float] = {}
        for (other, seed), start in by_place.items():
            first = by_place.get((shallow, seed))
            if other != name or first is None:
                continue
            for mine, theirs in ((start.train_loss, first.train_loss), (start.test_loss, first.test_loss)):
                if mine is not None and theirs is not None:
                    worst[str(seed)] = max(worst.get(str(seed), 0.0), abs(mine - theirs))
        yield Finding(
            statement=f"before its first step {name.removesuffix('-start')}-grown has the losses of {shallow}, "
            "to the last bit, on training and held-out images, in every seed",
            holds=_in_every(table, worst, lambda difference: difference == 0),
            numbers={"largest_difference_in_nats_by_seed": worst, **table.missing(worst)},
        )


def _depth(table: Table) -> Iterator[Finding]:
    for less, more in pairwise(table.depths("resnet")):
        names = f"resnet-{more}", f"resnet-{less}"
        difference = table.difference(*names, "test_error")
        if more > 1000:  # the paper's own finding (section 4.2)
            statement = f"{names[0]} has a higher test error than {names[1]}, as it overfits"
            yield _in_mean(table, statement, difference, _above)
        else:
            yield _in_mean(table, f"{names[0]} has a lower test error than {names[1]}", difference, _below)


def _shortcuts(table: Table) -> Iterator[Finding]:
    for depth in table.depths("resnet"):
        rest = [
            name for name in table.series if name.startswith(f"resnet-{depth}-") and not name.endswith(("-A", "-B"))
        ]
        pairs = [(f"resnet-{depth}-A", name) for name in rest]
        if [name[-1] for name in rest] == ["C"]:  # ImageNet, table 3: C before B before A
            pairs = [(f"resnet-{depth}-B", f"resnet-{depth}-A"), (f"resnet-{depth}-C", f"resnet-{depth}-B")]
        for better, worse in pairs:
            difference = table.difference(better, worse, "test_error")
            yield _in_mean(table, f"{better} has a lower test error than {worse}", difference, _below)


def _preactivation(table: Table) -> Iterator[Finding]:
    for depth in table.depths("preact"):
        difference = table.difference(f"preact-{depth}", f"resnet-{depth}", "test_error")
        yield _in_mean(table, f"preact-{depth} has a lower test error than resnet-{depth}", difference, _below)


def _transfer(table: Table) -> Iterator[Finding]:
    for depth in table.depths("resnet"):
        for better, worse in (("tuned", "scratch"), ("tuned", "frozen"), ("frozen", "scratch")):
            names = f"resnet-{depth}-{better}", f"resnet-{depth}-{worse}"
            difference = table.difference(*names, "test_error")
            yield _in_mean(table, f"{names[0]} has a lower test error than {names[1]}", difference, _below)


_OF: Mapping[str, Callable[[Table], Iterator[Finding]]] = {
    "degradation": _degradation,
    "identity": _identity,
    "depth": _depth,
    "shortcuts": _shortcuts,
    "preactivation": _preactivation,
    "transfer": _transfer,
}
